"""What became of every input: one line of JSON each, and their summary for the terminal."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from clipsep_jax.files import atomic_write
from clipsep_jax.records import SAMPLE_RATE_HZ, Record

LEDGER_NAME = "ledger.jsonl"


@dataclass(frozen=True)
class Input:
    """A clip to prepare.

    Attributes:
        id: POSIX path relative to the folder of clips.
        path: of the file.
        label: what is heard, "" where unknown.
        split: "train", "validation" or "test".
    """

    id: str
    path: Path
    label: str
    split: str


@dataclass(frozen=True)
class Rejection:
    """Why a clip gives no record: one of the reasons listed in docs/records.md, and a sentence."""

    reason: str
    detail: str


@dataclass(frozen=True)
class LedgerLine:
    """What became of one input; the figures are None where it was rejected."""

    input: str
    status: str  # "accepted" or "rejected"
    reason: str
    detail: str
    label: str
    split: str
    duration_seconds: float | None = None
    num_frames: int | None = None
    peak_dbfs: float | None = None


def peak_dbfs(audio: np.ndarray) -> float:
    """Peak level of 16-bit audio in decibels below full scale; minus infinity for digital silence."""
    peak = int(np.abs(audio.astype(np.int32)).max(initial=0))
    return 20 * math.log10(peak / 32768) if peak else -math.inf


def ledger_line(source: Input, outcome: Record | Rejection) -> LedgerLine:
    """Say what became of one input."""
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
        peak_dbfs=round(peak_dbfs(outcome.audio), 2),
    )


def write_ledger(path: Path, lines: Iterable[LedgerLine]) -> None:
    """Write a ledger, complete or not at all."""
    with atomic_write(path) as file:
        file.writelines(json.dumps(asdict(line)).encode() + b"\n" for line in lines)


def read_ledger(path: Path) -> list[LedgerLine]:
    """Read a ledger."""
    with path.open(encoding="utf-8") as file:
        return [LedgerLine(**json.loads(line)) for line in file]


def reasons(ledger: Iterable[LedgerLine]) -> dict[str, int]:
    """Count the rejected inputs by reason, the most frequent first."""
    return dict(Counter(line.reason for line in ledger if line.status == "rejected").most_common())


def summary(ledger: Sequence[LedgerLine]) -> str:
    """Make a table for the terminal: accepted by split, rejected by reason."""
    accepted = [line for line in ledger if line.status == "accepted"]
    splits = Counter(line.split for line in accepted)
    minutes = sum(line.duration_seconds or 0 for line in accepted) / 60
    rows = [("inputs", len(ledger), ""), ("accepted", len(accepted), f"{minutes:.1f} minutes of audio")]
    rows += [(f"  {split}", splits[split], "") for split in ("train", "validation", "test") if split in splits]
    rows.append(("rejected", len(ledger) - len(accepted), ""))
    rows += [(f"  {reason}", count, "") for reason, count in reasons(ledger).items()]
    return "\n".join(f"{name:<14}{count:>9,}  {note}".rstrip() for name, count, note in rows)
