"""Figures of scores: what comes out against what goes in, how scores spread, labels, and which source a query finds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from clipsep_jax.evaluation.scores import column
from clipsep_jax.evaluation.tables import lines_of
from clipsep_jax.metrics import METRICS
from clipsep_jax.pages import save_figure

_MOST_LABELS = 40  # that a figure can show


def write_figures(folder: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The figures of an evaluation; returns their paths."""
    metric = summary["ways"]["metrics"][0]
    ways = [line.estimate for line in lines_of(summary, metric) if line.estimate != "mixture"]
    values = {way: values_of(rows, way, metric) for way in ["mixture", *ways]}
    figures = {"out_against_in": scatter(values, metric), "histogram": histogram(values, metric)}
    labels = [row["target_label"] for row in rows]
    if 1 < len(set(labels)) <= _MOST_LABELS:
        figures["by_label"] = by_label(values, labels, metric)
    for way, found in summary.get("retrieval", {}).items():
        if len({line["asked"] for line in found["let_through"]}) <= _MOST_LABELS:
            figures[f"confusion_{way}"] = confusion(found["let_through"], way)
    return [save_figure(figure, folder / f"{name}.png") for name, figure in figures.items()]


def values_of(rows: Sequence[Mapping[str, Any]], way: str, metric: str) -> np.ndarray:
    """A score in each row, nan where it is not counted."""
    values = [row.get(column(way, metric)) for row in rows]
    return np.array([np.nan if value is None else value for value in values])


def scatter(values: Mapping[str, np.ndarray], metric: str) -> Figure:
    """The score of each estimate over that of its mixture; a point above the line is an improvement."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    for way, numbers in values.items():
        if way != "mixture" and not way.startswith("wrong"):
            axes.scatter(values["mixture"], numbers, s=10, alpha=0.6, label=way.replace("_", " "))
    ends = np.nanquantile(values["mixture"], [0, 1])
    axes.plot(ends, ends, color="grey", linestyle="dashed", label="no change")
    title = METRICS[metric].title
    axes.set(xlabel=f"{title} of the mixture (dB)", ylabel=f"{title} of the estimate (dB)", title="out against in")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def histogram(values: Mapping[str, np.ndarray], metric: str) -> Figure:
    """How the scores of each way spread."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    known = np.concatenate(list(values.values()))
    edges = np.linspace(float(np.nanmin(known)) - 0.1, float(np.nanmax(known)) + 0.1, 31).tolist()
    for way, numbers in values.items():
        axes.hist(numbers[np.isfinite(numbers)], edges, histtype="step", label=way.replace("_", " "))
    axes.set(xlabel=f"{METRICS[metric].title} (dB)", ylabel="mixtures", title="spread of scores")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def by_label(values: Mapping[str, np.ndarray], labels: Sequence[str], metric: str) -> Figure:
    """The mean score of each way by the label of the target, best text first."""
    names = sorted(set(labels))
    figure = Figure(figsize=(8, 1 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    for way, numbers in values.items():
        means = [np.nanmean(numbers[[label == name for label in labels]]) for name in names]
        axes.plot(means, range(len(names)), marker="o", linestyle="none", label=way.replace("_", " "))
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel=f"mean {METRICS[metric].title} (dB)", title="by label of the target")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def confusion(let_through: Sequence[Mapping[str, Any]], way: str) -> Figure:
    """The share of a source's energy that the mask of a query lets through, by label asked for and label heard."""
    names = sorted({line["asked"] for line in let_through})
    shares = np.full((len(names), len(names)), np.nan)
    for line in let_through:
        shares[names.index(line["asked"]), names.index(line["heard"])] = line["share"]
    side = 3 + 0.3 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="sound in the mixture", ylabel="asked for", title=f"energy let through, {way.replace('_', ' ')}")
    figure.colorbar(picture, label="share of the sound's energy")
    return figure
