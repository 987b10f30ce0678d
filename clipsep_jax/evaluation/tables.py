"""Scores as text and as files."""

import json
from pathlib import Path

from clipsep_jax.files import atomic_write


def table(summary: dict[str, dict]) -> str:
    """The summary as text, with the improvement over the mixture."""
    base = summary["mixture"]["sdr_mean"]
    lines = [f"{'estimate':<20}{'SDR mean':>10}{'± s.e.':>8}{'median':>8}{'gain':>8}   (dB, target source)"]
    for name, row in summary.items():
        if "sdr_mean" in row:
            values = f"{row['sdr_mean']:>10.2f}{row['sdr_sem']:>8.2f}{row['sdr_median']:>8.2f}"
            lines.append(f"{name:<20}{values}{row['sdr_mean'] - base:>8.2f}")
    skipped = summary["skipped"]["num"]
    note = f", {skipped} with a silent source left out" if skipped else ""
    lines.append(f"{summary['mixture']['num']} mixtures{note}")
    return "\n".join(lines)


def write_scores(folder: Path, summary: dict[str, dict], rows: list[dict]) -> Path:
    """Writes scores.json (the summary) and mixtures.jsonl (a line a mixture); returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "mixtures.jsonl") as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
    with atomic_write(folder / "scores.json") as file:
        file.write(json.dumps(summary, indent=2).encode() + b"\n")
    return folder / "scores.json"
