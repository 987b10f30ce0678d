"""Scores as text and as files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsep_jax.files import write_json, write_json_lines
from clipsep_jax.metrics import METRICS


@dataclass(frozen=True)
class Line:
    """One metric of one way to estimate the target; `gain` is the improvement of the mean over the mixture's."""

    estimate: str
    mean: float
    error: float
    median: float
    gain: float


def lines_of(summary: Mapping[str, Any], metric: str) -> list[Line]:
    """The lines of a metric's table; none if the summary lacks it."""
    mean, error, median = (f"{metric}_{figure}" for figure in ("mean", "sem", "median"))
    return [
        Line(name, row[mean], row[error], row[median], row[mean] - summary["mixture"][mean])
        for name, row in summary.items()
        if mean in row
    ]


def table(summary: dict[str, dict]) -> str:
    """The summary as text, with the improvement over the mixture."""
    text = []
    for name, metric in METRICS.items():
        mean = f"{metric.title + ' mean':>{len(metric.title) + 7}}"
        text.append(f"{'estimate':<20}{mean}{'± s.e.':>8}{'median':>8}{'gain':>8}   ({metric.unit}, target source)")
        for line in lines_of(summary, name):
            values = f"{line.mean:>{len(mean)}.2f}{line.error:>8.2f}{line.median:>8.2f}{line.gain:>8.2f}"
            text.append(f"{line.estimate:<20}{values}")
    skipped = summary["skipped"]["num"]
    note = f", {skipped} with a silent source left out" if skipped else ""
    return "\n".join([*text, f"{summary['mixture']['num']} mixtures{note}"])


def write_scores(folder: Path, summary: dict[str, dict], rows: list[dict]) -> Path:
    """Writes scores.json (the summary) and mixtures.jsonl (a line per mixture); returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(folder / "mixtures.jsonl", rows)
    write_json(folder / "scores.json", summary)
    return folder / "scores.json"
