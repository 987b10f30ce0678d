"""The outcome of every input: one line of JSON each."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int16

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.errors import InputError
from clipsep_jax.files import read_json_lines, write_json_lines

LEDGER_NAME = "ledger.jsonl"


@dataclass(frozen=True)
class Rejection:
    """Why a clip gives no record: one of the reasons listed in docs/records.md, and a sentence."""

    reason: str
    detail: str


@dataclass(frozen=True)
class LedgerLine:
    """The outcome of one input; the figures are None if it was rejected."""

    input: str
    status: Literal["accepted", "rejected"]
    reason: str
    detail: str
    label: str
    split: str
    duration_seconds: float | None = None
    num_frames: int | None = None
    peak_dbfs: float | None = None
    rms_dbfs: float | None = None
    still_picture: bool | None = None


def dbfs(level: float) -> float:
    """A level of 16-bit audio in decibels below full scale; minus infinity for digital silence."""
    return 20 * math.log10(level / 32768) if level else -math.inf


def _rms(audio: Int16[np.ndarray, " L"]) -> float:
    return math.sqrt(np.square(audio, dtype=np.float64).mean())


def ledger_line(source: Input, outcome: Record | Rejection) -> LedgerLine:
    """The ledger line of one input."""
    if isinstance(outcome, Rejection):
        return LedgerLine(source.id, "rejected", outcome.reason, outcome.detail, source.label, source.split)
    return LedgerLine(
        source.id,
        "accepted",
        "",
        "",
        source.label,
        source.split,
        duration_seconds=round(len(outcome.audio) / SAMPLE_RATE_HZ, 3),
        num_frames=len(outcome.frames),
        peak_dbfs=round(dbfs(float(np.abs(outcome.audio.astype(np.int32)).max())), 2),
        rms_dbfs=round(dbfs(_rms(outcome.audio)), 2),
        still_picture=outcome.still_picture,
    )


def reject(line: LedgerLine, why: Rejection) -> LedgerLine:
    """The line of an input whose record turned out to be of no use later."""
    return LedgerLine(line.input, "rejected", why.reason, why.detail, line.label, line.split)


def write_ledger(path: Path, lines: Iterable[LedgerLine]) -> None:
    """Write a ledger, complete or not at all."""
    write_json_lines(path, map(asdict, lines))


def read_ledger(path: Path) -> list[LedgerLine]:
    """Read a ledger.

    Raises:
        InputError: the file is missing or is not a ledger.
    """
    try:
        return read_json_lines(path, "is not a ledger of `clipsep prepare`; prepare the records again.", LedgerLine)
    except FileNotFoundError:
        raise InputError(f"There is no {path}; name a folder that `clipsep prepare` has written.") from None


def reasons(ledger: Iterable[LedgerLine]) -> dict[str, int]:
    """Count the rejected inputs by reason, the most frequent first."""
    return dict(Counter(line.reason for line in ledger if line.status == "rejected").most_common())
