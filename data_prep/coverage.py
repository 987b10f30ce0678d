"""The results of a preparation: a table, the coverage of labels and splits, and the loudness of the clips."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipsep_jax.data_prep.ledger import LedgerLine, reasons
from clipsep_jax.data_prep.sources.inputs import SPLITS
from clipsep_jax.files import atomic_write, write_csv

COVERAGE_NAME = "coverage.csv"
LOUDNESS_NAME = "loudness.png"

_MAX_LABELS = 30  # printed at most


@dataclass(frozen=True)
class Coverage:
    """Accepted and rejected clips of one label, and hours of accepted audio."""

    label: str
    accepted: dict[str, int]  # by split
    rejected: int
    hours: float

    @property
    def total(self) -> int:
        """Accepted clips."""
        return sum(self.accepted.values())


def summary(ledger: Sequence[LedgerLine]) -> str:
    """A table: accepted by split, with hours of audio, and rejected by reason."""
    accepted = [line for line in ledger if line.status == "accepted"]
    rows = [("inputs", len(ledger), ""), ("accepted", len(accepted), _hours(accepted))]
    for split in SPLITS:
        clips = [line for line in accepted if line.split == split]
        rows += [(f"  {split}", len(clips), _hours(clips))] if clips else []
    num_still = sum(bool(line.still_picture) for line in accepted)
    rows += [("still picture", num_still, "accepted, but nothing moves")] if num_still else []
    rows.append(("rejected", len(ledger) - len(accepted), ""))
    rows += [(f"  {reason}", count, "") for reason, count in reasons(ledger).items()]
    return "\n".join(f"{name:<14}{count:>9,}  {note}".rstrip() for name, count, note in rows)


def _hours(lines: Sequence[LedgerLine]) -> str:
    return f"{_total_hours(lines):.2f} hours of audio"


def _total_hours(lines: Sequence[LedgerLine]) -> float:
    return sum(line.duration_seconds or 0 for line in lines) / 3600


def coverage(ledger: Sequence[LedgerLine]) -> list[Coverage]:
    """The coverage of every label of the inputs, the most frequent first; unlabelled clips have the label ""."""
    by_label: dict[str, list[LedgerLine]] = {}
    for line in ledger:
        by_label.setdefault(line.label, []).append(line)
    found = []
    for label, lines in by_label.items():
        accepted = [line for line in lines if line.status == "accepted"]
        splits = Counter(line.split for line in accepted)
        found.append(
            Coverage(
                label, {split: splits[split] for split in SPLITS}, len(lines) - len(accepted), _total_hours(accepted)
            )
        )
    return sorted(found, key=lambda row: (-row.total, row.label))


def coverage_table(rows: Sequence[Coverage]) -> str:
    """The coverage as text; of many labels, only the most and the least frequent."""
    shown: list[Coverage | None] = list(rows)
    if len(rows) > _MAX_LABELS:
        shown = [*rows[: _MAX_LABELS // 2], None, *rows[-_MAX_LABELS // 2 :]]
    width = max((len(_name(row)) for row in rows), default=0)
    lines = [f"{'label':<{width}}" + "".join(f"{name:>12}" for name in (*SPLITS, "rejected", "hours"))]
    for row in shown:
        if row is None:
            lines.append(f"... {len(rows) - len(shown) + 1} more labels ...")
        else:
            counts = [*(row.accepted[split] for split in SPLITS), row.rejected]
            lines.append(f"{_name(row):<{width}}" + "".join(f"{n:>12,}" for n in counts) + f"{row.hours:>12.2f}")
    return "\n".join(lines)


def _name(row: Coverage) -> str:
    return row.label or "(no label)"


def write_coverage(path: Path, rows: Sequence[Coverage]) -> None:
    """Write the coverage of all labels as a CSV file."""
    lines = [[row.label, *(row.accepted[split] for split in SPLITS), row.rejected, round(row.hours, 4)] for row in rows]
    write_csv(path, ["label", *SPLITS, "rejected", "hours"], lines)


def plot_loudness(path: Path, ledger: Sequence[LedgerLine]) -> None:
    """Draw histograms of the level (root mean square) and the peak of the accepted clips."""
    from matplotlib.figure import Figure

    accepted = [line for line in ledger if line.status == "accepted"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    bins = [*range(-90, 1, 2)]
    axes.hist([line.rms_dbfs or 0.0 for line in accepted], bins, alpha=0.7, label="level (root mean square)")
    axes.hist([line.peak_dbfs or 0.0 for line in accepted], bins, histtype="step", linewidth=1.5, label="peak")
    axes.set(xlabel="dB relative to full scale", ylabel="clips", title=f"Loudness of {len(accepted):,} clips")
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
