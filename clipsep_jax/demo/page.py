"""The demo's report: a page with scores, curves, spectrograms and players."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from clipsep_jax.config import SpectrogramConfig
from clipsep_jax.evaluation.tables import lines_of, metrics_of
from clipsep_jax.metrics import CHIEF, METRICS
from clipsep_jax.pages import finish_axes, html_image, html_table, plot_curve, save_figure, write_page
from clipsep_jax.spectrogram_pictures import draw_sounds
from clipsep_jax.training.curves import read_metrics


@dataclass(frozen=True)
class Example:
    """One separated mixture: sounds by name, their files, and by metric the score of each against the target."""

    label: str
    other: str
    sounds: dict[str, np.ndarray]
    files: dict[str, Path]
    scores: dict[str, dict[str, float]]
    spectrogram: SpectrogramConfig


def write_report(out: Path, report: dict[str, Any], examples: Sequence[Example], trained_on: str) -> Path:
    """Writes figures/ and report.html below `out`, for a run in `out`/run; returns the page's path."""
    figures = out / "figures"
    figures.mkdir(exist_ok=True)
    curves = save_figure(_curves(read_metrics(out / "run")), figures / "curves.png")
    introduction = _INTRODUCTION.format(trained_on=trained_on)
    parts = [introduction, _score_table(report), "<h2>Training</h2>", html_image(curves, out), "<h2>Examples</h2>"]
    for number, example in enumerate(examples):
        picture = save_figure(draw_sounds(example.sounds, example.spectrogram), figures / f"example_{number}.png")
        parts += [_example_title(example), html_image(picture, out), _players(example, out)]
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in report["seconds"].items())
    parts.append(f"<p>Time: {html.escape(seconds)}.</p>")
    return write_page(out / "report.html", "clipsep demo", parts)


_INTRODUCTION = """<h1>Pulling sounds out of mixtures by a sentence</h1>
<p>The separator was trained on {trained_on}. The queries are sentences such as
&ldquo;a photo of drum&rdquo;, embedded by the CLIP whose picture embeddings it was trained with.
Scores are of the target source, on held-out mixtures of two sounds.</p>
"""

_MEANING = {
    "mixture": "the mixture itself, unseparated",
    "ideal_binary_mask": "the true binary mask, which the network learns to predict",
    "ideal_ratio_mask": "the share of the target in each bin",
    "text_and_image": "queried by the mean of both",
    "text": "queried by the target's name",
    "image": "queried by the target's pictures",
    "wrong_query": "queried for the other sound",
    "wrong_image_query": "queried by the other sound's pictures",
}


def _score_table(report: dict[str, Any]) -> str:
    titles, rows = ["estimate"], {line.estimate: [line.estimate] for line in lines_of(report, CHIEF)}
    metrics = {name: METRICS[name] for name in metrics_of(report)}
    for name, metric in metrics.items():
        titles += [f"{metric.title} mean ± s.e.", "median", "gain"]
        for line in lines_of(report, name):
            rows[line.estimate] += [f"{line.mean:.2f} ± {line.error:.2f}", f"{line.median:.2f}", f"{line.gain:+.2f}"]
    table = html_table([*titles, ""], [[*row, _MEANING.get(name, "")] for name, row in rows.items()])
    units = ", ".join(f"{metric.title} in {metric.unit}" for metric in metrics.values())
    return f"{table}<p>{report['mixture']['num']} mixtures; {units}.</p>{_presence(report.get('presence', {}))}"


def _presence(presence: dict[str, float]) -> str:
    if not presence:
        return ""
    return (
        f"<p>Whether a sound is there at all: ROC AUC {presence['auc']:.3f} on {presence['num_present']} targets that "
        f"are and {presence['num_absent']} that are not; by the energy of the stems {presence['energy_auc']:.3f}.</p>"
    )


def _example_title(example: Example) -> str:
    parts = [f"<h3>{html.escape(example.label)} out of {html.escape(example.other)}</h3>"]
    for name, by_sound in example.scores.items():
        metric = METRICS[name]
        values = [f"{sound} {value:.1f} {metric.unit}" for sound, value in by_sound.items()]
        parts.append(f"<p>{metric.title}: {html.escape(', '.join(values))}.</p>")
    return "".join(parts)


def _players(example: Example, out: Path) -> str:
    players = [
        f'<div>{name}<audio controls preload="none" src="{path.relative_to(out).as_posix()}"></audio></div>'
        for name, path in example.files.items()
    ]
    return f'<div class="players">{"".join(players)}</div>'


def _curves(metrics: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    loss, activation = figure.subplots(1, 2)
    plot_curve(loss, metrics, "loss", "training")
    plot_curve(loss, metrics, "validation_loss_image", "held out, image query")
    plot_curve(loss, metrics, "validation_loss_text", "held out, text query")
    finish_axes(loss, "loss")
    plot_curve(activation, metrics, "mean_query_activation", "query masks")
    plot_curve(activation, metrics, "mean_noise_activation", "noise masks")
    finish_axes(activation, "mean activation (sum of two masks)")
    return figure
