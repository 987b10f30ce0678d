"""A comparison as text, Markdown, LaTeX, CSV and JSON, and as figures."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from clipsep_jax.evaluation.compare import Difference, Scored, common_mixtures
from clipsep_jax.files import atomic_write, encode_json, write_csv, write_json
from clipsep_jax.metrics import METRICS, summarise
from clipsep_jax.pages import save_figure

FORMATS = ("text", "markdown", "latex", "csv", "json")
_DIFFERENCE_NAMES = [field.name for field in fields(Difference)]
_MOST_LABELS = 40  # that a figure can show
_SUFFIXES = {"text": "txt", "markdown": "md", "latex": "tex"}


def text_of(kind: str, systems: Sequence[Scored], differences: Sequence[Difference], metric: str) -> str:
    """The comparison in one of `FORMATS`."""
    head, rows = _means(systems, metric)
    if kind == "json":
        return encode_json(_facts(systems, differences, metric), 2).decode().rstrip()
    if kind == "csv":
        tables = [[head, *rows], [_DIFFERENCE_NAMES, *map(_difference_cells, differences)]]
        return "\n\n".join("\n".join(",".join(map(_quoted, row)) for row in lines) for lines in tables)
    notes = [*_notes(systems), *(difference.sentence for difference in differences)]
    if kind == "latex":
        return "\n".join([_latex(rows, metric), *(f"% {note}" for note in notes)])
    notes += [
        f"To tell {difference.first} and {difference.second} apart where one is 0.3 dB better takes some "
        f"{difference.needed} mixtures like these."
        for difference in differences
    ]
    if kind == "markdown":
        lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
        return "\n".join([*lines, "", *(f"- {note}" for note in notes)])
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in [head, *rows]]
    return "\n".join([*lines, *notes])


def write_comparison(folder: Path, systems: Sequence[Scored], differences: Sequence[Difference], metric: str) -> Path:
    """Write all formats and the figures; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, suffix in _SUFFIXES.items():
        with atomic_write(folder / f"compare.{suffix}") as file:
            file.write((text_of(kind, systems, differences, metric) + "\n").encode())
    head, rows = _means(systems, metric)
    write_csv(folder / "compare.csv", head, rows)
    write_csv(folder / "differences.csv", _DIFFERENCE_NAMES, map(_difference_cells, differences))
    write_json(folder / "compare.json", _facts(systems, differences, metric))
    save_figure(_spread(systems, metric), folder / "differences.png")
    if 1 < len({systems[0].labels[key] for key in common_mixtures(systems)}) <= _MOST_LABELS:
        save_figure(_by_label(systems, metric), folder / "differences_by_label.png")
    return folder


def _means(systems: Sequence[Scored], metric: str) -> tuple[list[str], list[list[str]]]:
    """A row for each system: mean, standard error and median on the common mixtures."""
    common = common_mixtures(systems)
    rows = []
    for system in systems:
        found = summarise({metric: np.array([system.scores[key] for key in common])})
        figures = [f"{found[f'{metric}_{name}']:.2f}" for name in ("mean", "sem", "median")]
        rows.append([system.name, *figures, str(len(common))])
    title = METRICS[metric].title
    return ["system", f"{title} mean (dB)", "s.e.", "median", "mixtures"], rows


def _notes(systems: Sequence[Scored]) -> list[str]:
    common = len(common_mixtures(systems))
    return [
        f"{system.name} was scored on {len(system.scores)} mixtures, of which {common} are common to all."
        for system in systems
        if len(system.scores) != common
    ]


def _facts(systems: Sequence[Scored], differences: Sequence[Difference], metric: str) -> dict:
    common = common_mixtures(systems)
    return {
        "metric": metric,
        "mixtures": len(common),
        "systems": [
            {"name": system.name, "scored": len(system.scores)}
            | summarise({metric: np.array([system.scores[key] for key in common])})
            for system in systems
        ],
        "differences": [
            {name: _or_none(value) for name, value in asdict(each).items()}
            | {"is_real": each.is_real, "sentence": each.sentence}
            for each in differences
        ],
    }


def _or_none(value: Any) -> Any:
    """JSON knows no infinity."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _difference_cells(difference: Difference) -> list[str]:
    return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in asdict(difference).values()]


def _quoted(cell: str) -> str:
    return f'"{cell.replace(chr(34), chr(34) * 2)}"' if set(cell) & set(',"\n') else cell


def _latex(rows: Sequence[Sequence[str]], metric: str) -> str:
    """As the paper prints its tables: mean and standard error, median."""
    lines = [f"{_escaped(name)} & ${mean} \\pm {error}$ & ${median}$ \\\\" for name, mean, error, median, _ in rows]
    title = METRICS[metric].title
    return "\n".join([
        r"\begin{tabular}{lcc}", r"\toprule", f"Model & Mean {title} (dB) & Median {title} (dB) \\\\", r"\midrule",
        *lines, r"\bottomrule", r"\end{tabular}",
    ])  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "&%$#_{}" else letter for letter in text)


def _spread(systems: Sequence[Scored], metric: str) -> Figure:
    """How each system's differences from the first spread over mixtures."""
    common = common_mixtures(systems)
    first = np.array([systems[0].scores[key] for key in common])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for system in systems[1:]:
        values = np.array([system.scores[key] for key in common]) - first
        axes.hist(values, _edges(values), histtype="step", label=f"{system.name}, mean {values.mean():+.2f} dB")
    axes.axvline(0, color="grey", linestyle="dashed")
    axes.set(xlabel=f"{METRICS[metric].title} less that of {systems[0].name} (dB)", ylabel="mixtures")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def _edges(values: np.ndarray) -> list[float]:
    """Of 30 bins."""
    room = 0.5 if np.ptp(values) < 1e-3 else 0.0
    return np.linspace(values.min() - room, values.max() + room, 31).tolist()


def _by_label(systems: Sequence[Scored], metric: str) -> Figure:
    """Mean differences from the first system by the label of the target."""
    common = common_mixtures(systems)
    labels = [systems[0].labels[key] for key in common]
    names = sorted(set(labels))
    figure = Figure(figsize=(8, 1.5 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    for system in systems[1:]:
        values = np.array([system.scores[key] - systems[0].scores[key] for key in common])
        means = [values[[label == name for label in labels]].mean() for name in names]
        axes.plot(means, range(len(names)), marker="o", linestyle="none", label=system.name)
    axes.axvline(0, color="grey", linestyle="dashed")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=f"mean {METRICS[metric].title} less that of {systems[0].name} (dB)")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure
