"""Pictures of spectrograms and masks, for TensorBoard and for reports."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipsep_jax.config import SpectrogramConfig
from clipsep_jax.spectrogram import stft

_RANGE_DB = 70  # that the colours span, below the loudest


def draw_images(images: Mapping[str, Float[np.ndarray, "K T"]]) -> Figure:
    """Images side by side, without axes: spectrograms in dB, whose names end with "dB", and masks from 0 to 1."""
    figure = Figure(figsize=(2.2 * len(images), 2.4), layout="constrained")
    for axes, (name, image) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        if name.endswith("dB"):
            _show_decibels(axes, image, float(image.max()))
        else:
            _show(axes, image, 0.0, 1.0)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    return figure


def draw_sounds(sounds: Mapping[str, Float[np.ndarray, " L"]], config: SpectrogramConfig) -> Figure:
    """The spectrograms of sounds side by side, over seconds and kHz, their colours relative to the loudest of all."""
    figure = Figure(figsize=(12, 3), layout="constrained")
    plots = np.atleast_1d(figure.subplots(1, len(sounds), sharey=True))
    levels = {name: _decibels(sound, config) for name, sound in sounds.items()}
    top = max(float(level.max()) for level in levels.values())
    for axes, (name, level) in zip(plots, levels.items(), strict=True):
        seconds = len(sounds[name]) / config.sample_rate_hz
        _show_decibels(axes, level, top, extent=(0, seconds, 0, config.sample_rate_hz / 2000))
        axes.set(title=name, xlabel="s")
    plots[0].set_ylabel("kHz")
    return figure


def draw_separation(
    mixture: Float[np.ndarray, "F T"],
    stems: Float[np.ndarray, "N F T"],
    titles: Sequence[str],
    seconds: float,
    top_khz: float,
) -> Figure:
    """The power of a mixture above, and for each stem a row of the share that it got and of its own power."""
    figure = Figure(figsize=(12, 2.6 * (1 + len(stems))), layout="constrained")
    plots = figure.subplots(1 + len(stems), 2, squeeze=False, sharex=True, sharey=True)
    extent = (0.0, seconds, 0.0, top_khz)
    level = 10 * np.log10(np.maximum(mixture, 1e-10))
    top = float(level.max())
    _show_decibels(plots[0][0], level, top, extent=extent)
    plots[0][0].set_title("mixture")
    plots[0][1].set_axis_off()
    for (share, result), stem, title in zip(plots[1:], stems, titles, strict=True):
        _show(share, np.sqrt(np.minimum(1, stem / np.maximum(mixture, 1e-10))), 0.0, 1.0, extent=extent)
        share.set_title(f"{title}: mask")
        _show_decibels(result, 10 * np.log10(np.maximum(stem, 1e-10)), top, extent=extent)
        result.set_title(f"{title}: result")
    for row in plots:
        row[0].set_ylabel("kHz")
    for axes in plots[-1]:
        axes.set_xlabel("s")
    return figure


def _decibels(sound: Float[np.ndarray, " L"], config: SpectrogramConfig) -> Float[np.ndarray, "F T"]:
    magnitude = np.abs(np.asarray(stft(jnp.asarray(sound), config)))
    return 20 * np.log10(np.maximum(magnitude, 1e-5))


def _show_decibels(axes: Axes, level: Float[np.ndarray, "K T"], top: float, **options: Any) -> None:
    _show(axes, level, top - _RANGE_DB, top, **options)


def _show(axes: Axes, image: Float[np.ndarray, "K T"], low: float, high: float, **options: Any) -> None:
    axes.imshow(image, origin="lower", aspect="auto", vmin=low, vmax=high, cmap="magma", **options)
