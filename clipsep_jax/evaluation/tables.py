"""Scores as text and as files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsep_jax.evaluation.estimates import is_oracle
from clipsep_jax.files import write_json, write_json_lines
from clipsep_jax.metrics import METRICS

ROWS_NAME, SUMMARY_NAME = "mixtures.jsonl", "scores.json"


@dataclass(frozen=True)
class Line:
    """One metric of one way to estimate the target; `gain` is the mean improvement over the mixture."""

    estimate: str
    num: int
    mean: float
    error: float
    median: float
    gain: float
    gain_error: float


def lines_of(summary: Mapping[str, Any], metric: str) -> list[Line]:
    """The lines of a metric's table; none if the summary lacks it."""
    mean, error, median = (f"{metric}_{figure}" for figure in ("mean", "sem", "median"))
    return [
        Line(
            name,
            row["num"],
            row[mean],
            row[error],
            row[median],
            row.get(f"{metric}_gain_mean", 0.0),
            row.get(f"{metric}_gain_sem", 0.0),
        )
        for name, row in summary.items()
        if mean in row
    ]


def metrics_of(summary: Mapping[str, Any]) -> list[str]:
    """The metrics that a summary has."""
    return [name for name in METRICS if lines_of(summary, name)]


def ways_of(summary: Mapping[str, Any]) -> list[str]:
    """The ways of estimation of a summary, those without a score too."""
    return [name for name, row in summary.items() if "num" in row and name != "skipped"]


def table(summary: dict[str, dict]) -> str:
    """The summary as text; what only an oracle can do is marked."""
    text: list[str] = []
    names = ways_of(summary)
    width = max(20, *(len(_marked(name)) + 1 for name in names))
    for name in metrics_of(summary):
        metric = METRICS[name]
        mean = f"{metric.title + ' mean':>{len(metric.title) + 7}}"
        head = f"{'estimate':<{width}}{mean}{'± s.e.':>8}{'median':>8}{'gain':>8}{'± s.e.':>8}{'number':>8}"
        text.append(f"{head}   ({metric.unit}, target source)")
        for line in lines_of(summary, name):
            values = f"{line.mean:>{len(mean)}.2f}{line.error:>8.2f}{line.median:>8.2f}"
            gain = f"{line.gain:>8.2f}{line.gain_error:>8.2f}" if line.estimate != "mixture" else " " * 16
            text.append(f"{_marked(line.estimate):<{width}}{values}{gain}{line.num:>8}")
    return "\n".join([*text, *_retrieved(summary), *_notes(summary, names)])


def _marked(name: str) -> str:
    return f"{name} (oracle)" if is_oracle(name) else name


def _retrieved(summary: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {row['right']:.0%} of {row['num']} queries let more of their own source through than of any other."
        for name, row in summary.get("retrieval", {}).items()
    ]


def _notes(summary: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    notes = []
    if any(map(is_oracle, names)):
        notes.append("An oracle knows the true sources: it is a bound, not a system.")
    for name in names:
        reasons = summary[name].get("not_counted", {})
        notes += [f"{name}: {num} not counted ({reason})." for reason, num in reasons.items()]
    protocol, skipped = summary["protocol"], summary["skipped"]["num"]
    scored = protocol["found"] - skipped
    left_out = f", {skipped} with a silent source left out" if skipped else ""
    if not protocol["sha256"]:
        fewer = protocol["listed"] - protocol["found"]
        asked = f" ({protocol['listed']} asked for, but these clips make no more different ones)" if fewer else ""
        return [*notes, f"{scored} mixtures{left_out}{asked}"]
    pairs = f"{protocol['listed']} pairs of {protocol['name']} (sha256 {protocol['sha256'][:12]})"
    notes.append(f"Scored {scored} of {pairs}{left_out}.")
    if missing := protocol["missing"]:
        notes.append(f"{len(missing)} of the listed clips are not in the records, such as {missing[0]}.")
    return notes


def write_scores(folder: Path, summary: dict[str, dict], rows: list[dict]) -> Path:
    """Writes scores.json (the summary) and mixtures.jsonl (a line per mixture); returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(folder / ROWS_NAME, rows)
    write_json(folder / SUMMARY_NAME, summary)
    return folder / SUMMARY_NAME
