"""The report of a sweep: a row per member, the figures of the ablation, a page."""

import html
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipsep_jax.errors import InputError
from clipsep_jax.files import read_json, write_csv
from clipsep_jax.metrics import METRICS
from clipsep_jax.model_dir import open_model_dir
from clipsep_jax.pages import finish_axes, html_image, html_table, plot_curve, save_figure, write_page
from clipsep_jax.training.curves import read_metrics
from clipsep_jax.training.members import GIVEN_UP_NAME, GivenUp

PAGE_NAME = "sweep.html"

_AVERAGED = ("loss", "mean_query_activation", "mean_noise_activation", "noise_level")
_SCORED = (
    "text",
    "image",
    "text_and_image",
    "label",
    "sentence",
    "best_mask",
)  # kinds of queries for the figures of scores
_ON_CONSOLE = ("member", "given_up", "loss", "mean_noise_activation", "skipped_steps")  # with the means of _SCORED
_LOG_SCALE_FROM = 30  # times the least value

Row = dict[str, Any]  # a member's figures by the names of the columns of sweep.csv


def summarise_member(workdir: Path, varied: Mapping[str, float | int | str], scores: Mapping[str, dict]) -> Row:
    """The varied options, means over the last tenth of training, and the scores of `Evaluation.run`.

    Activations are those of training batches, which hold the sounds that no picture shows.
    """
    lines = read_metrics(workdir)
    row: Row = {"member": workdir.name, **varied, "given_up": _given_up(workdir)}
    with suppress(InputError):  # no model, or a damaged one
        progress = open_model_dir(workdir).progress
        row |= {f"best_{name}": value for name, value in vars(progress).items() if value is not None}
    skipped = lines[-1].get("skipped_steps", 0) if lines else math.nan
    row |= {"skipped_steps": int(skipped)} if math.isfinite(skipped) else {}
    for name in _AVERAGED:
        values = [line[name] for line in lines if name in line and line["step"] > 0.9 * lines[-1]["step"]]
        row |= {name: float(np.mean(values))} if values else {}
    for kind, score in scores.items():
        for metric in METRICS:
            if f"{metric}_mean" in score:
                row |= {
                    f"{metric}_{kind}": score[f"{metric}_mean"],
                    f"{metric}_{kind}_sem": score[f"{metric}_sem"],
                }
    return row


def _given_up(workdir: Path) -> str:
    """The step at which training of this member ended early, such as "step 12"; else empty."""
    path = workdir / GIVEN_UP_NAME
    return f"step {read_json(path, 'is damaged; restore it.', GivenUp).step}" if path.is_file() else ""


def write_report(workdir: Path, options: Sequence[str], rows: Sequence[Row]) -> Path:
    """Writes sweep.csv, the figures and sweep.html; returns the page's path."""
    write_csv(workdir / "sweep.csv", _names(rows), [[row.get(name, "") for name in _names(rows)] for row in rows])
    figures = {"noise_activation": noise_figure(options, rows)}
    figures |= {metric: score_figure(metric, options, rows) for metric in METRICS}
    curves = _curves({str(row["member"]): read_metrics(workdir / str(row["member"])) for row in rows})
    for name in figures:
        (workdir / f"{name}.png").unlink(missing_ok=True)  # of an earlier report
    pictures = [save_figure(figure, workdir / f"{name}.png") for name, figure in figures.items() if figure]
    pictures.append(save_figure(curves, workdir / "curves.png"))
    title = "Sweep over " + " and ".join(map(_short, options))
    shown = [name for name in _names(rows) if not name.endswith("_sem")]
    scored = [metric for name, metric in METRICS.items() if figures[name]]
    scores = " and ".join(f"{metric.title} (in {metric.unit})" for metric in scored) or "scores"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        "<p>All members were trained together, on the same batches from the same start. Losses and activations are "
        f"means over the last tenth of training; {html.escape(scores)}, &plusmn; the standard error, of the best model "
        "of each member on held-out mixtures.</p>",
        html_table([name.replace("_", " ") for name in shown], [[_cell(row, name) for name in shown] for row in rows]),
        *(html_image(picture, workdir) for picture in pictures),
        '<p>The same as a table for programs: <a href="sweep.csv">sweep.csv</a>.</p>',
    ]
    return write_page(workdir / PAGE_NAME, title, parts)


def text_table(rows: Sequence[Row]) -> str:
    """What the page shows of each member, for the console."""
    on_console = {*_ON_CONSOLE, *(f"{metric}_{kind}" for metric in METRICS for kind in _SCORED)}
    shown = [name for name in _names(rows) if name in on_console]
    cells = [[name.replace("_", " ") for name in shown], *([_cell(row, name) for name in shown] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in cells)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(row: Row, name: str) -> str:
    value, error = row.get(name, ""), row.get(f"{name}_sem")
    if error is not None:
        return f"{value:.2f} ± {error:.2f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _lines(options: Sequence[str], rows: Sequence[Row]) -> tuple[str, dict[str, list[Row]]]:
    """The option on the x axis (the first whose values are numbers), and the members of each line of a plot."""
    numeric = [option for option in options if not isinstance(rows[0][option], str)]
    across = (numeric or list(options))[0]
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[across]) if numeric else rows:
        others = [f"{_short(option)} {row[option]}" for option in options if option != across]
        lines.setdefault(", ".join(others), []).append(row)
    return across, lines


def _short(option: str) -> str:
    return option.rpartition(".")[2].replace("_", " ")


def noise_figure(options: Sequence[str], rows: Sequence[Row]) -> Figure | None:
    """Mean activation of the noise masks over the varied option."""
    if not any("mean_noise_activation" in row for row in rows):
        return None
    option, lines = _lines(options, rows)
    figure, axes = _axes()
    for name, line in lines.items():
        known = [row for row in line if "mean_noise_activation" in row]
        values = [row["mean_noise_activation"] for row in known]
        axes.plot([row[option] for row in known], values, marker="o", label=name or "noise masks")
    if option == "objective.gamma":
        gammas = sorted({row[option] for row in rows})
        axes.plot(gammas, gammas, color="grey", linestyle="dashed", label="gamma")
    _finish(axes, option, rows, "mean noise activation (sum of the masks)")
    axes.set_ylim(0, None)
    return figure


def score_figure(metric: str, options: Sequence[str], rows: Sequence[Row]) -> Figure | None:
    """A metric on held-out mixtures over the varied option, for each kind of query."""
    kinds = [kind for kind in _SCORED if any(f"{metric}_{kind}" in row for row in rows)]
    if not kinds:
        return None
    option, lines = _lines(options, rows)
    figure, axes = _axes()
    for name, line in lines.items():
        for kind in kinds:
            known = [row for row in line if f"{metric}_{kind}" in row]
            axes.errorbar(
                [row[option] for row in known],
                [row[f"{metric}_{kind}"] for row in known],
                [row[f"{metric}_{kind}_sem"] for row in known],
                marker="o",
                capsize=3,
                label=", ".join(filter(None, [f"{kind} query", name])),
            )
    levels = [row[f"{metric}_mixture"] for row in rows if f"{metric}_mixture" in row]
    axes.axhline(levels[0], color="grey", linestyle="dashed", label="mixture")
    _finish(axes, option, rows, f"{METRICS[metric].title} of held-out mixtures ({METRICS[metric].unit})")
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 4), layout="constrained")
    return figure, figure.subplots()


def _finish(axes: Axes, option: str, rows: Sequence[Row], title: str) -> None:
    values = [row[option] for row in rows]
    axes.set(xlabel=_short(option), title=title)
    if not isinstance(values[0], str) and 0 < _LOG_SCALE_FROM * min(values) < max(values):
        axes.set_xscale("log")
    axes.legend()
    axes.grid(alpha=0.3)


def _curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss, activation = figure.subplots(1, 2)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(metrics)))
    for (name, lines), colour in zip(metrics.items(), colours, strict=True):
        plot_curve(loss, lines, "loss", name, color=colour)
        plot_curve(activation, lines, "mean_noise_activation", name, color=colour)
    finish_axes(loss, "training loss")
    if any("mean_noise_activation" in line for lines in metrics.values() for line in lines):
        finish_axes(activation, "mean noise activation (sum of the masks)")
    return figure
