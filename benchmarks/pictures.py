"""Draws the pictures of docs/how-it-works.md, and prints the figures that the page quotes.

    python -m benchmarks.pictures

The sounds are made here, and the masks are the targets of training: nothing is trained, and no file is read. `sdr_db`
is the SDR of each source, estimated by the mixture itself and by the mixture through its binary and its ratio mask.
"""

import argparse
import json
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
from jaxtyping import Float, Float32, Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from clipsep_jax.config import MixingConfig, ObjectiveConfig, SpectrogramConfig
from clipsep_jax.demo.toy.sounds import synthesize
from clipsep_jax.metrics import sdr
from clipsep_jax.mixing import mix
from clipsep_jax.objectives import CRITERIA, build_objective
from clipsep_jax.pages import save_figure
from clipsep_jax.separation.chunks import ChunkPlan
from clipsep_jax.spectrogram import apply_masks, frequency_warp, log_warped_magnitude, stft
from clipsep_jax.structures import MaskLogits, Mixture

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"
KINDS = ("accordion", "dog")
SEED = 3
TICKS_HZ = (100, 250, 500, 1_000, 2_000, 4_000, 8_000)
RANGE_DB = 70
STEP_DB = 5  # from one colour to the next
SHOWN_SECONDS = 2  # of the masks
NUM_FRAMES = 600  # of the recording whose chunks are drawn
GAMMAS = (0.0, 0.25, 0.5, 1.0)
NOISE_MASKS = (0.0, 0.25, 0.5)
NUM_COLOURS = 128  # of a picture


def make_sources(config: SpectrogramConfig) -> Float32[np.ndarray, "N L"]:
    """A clip of each kind of sound, always the same."""
    rng = np.random.default_rng(SEED)
    return np.stack([synthesize(kind, rng, "train", config.num_samples) for kind in KINDS])


def mixtures_of(sources: Float32[np.ndarray, "N L"], config: SpectrogramConfig) -> dict[str, Mixture]:
    """What training makes of the sources, with binary and with ratio targets."""
    batch = jnp.asarray(sources)[None]
    return {
        name: jax.tree.map(lambda x: np.asarray(x[0]), mix(batch, config, MixingConfig(targets=name)))
        for name in ("binary", "ratio")
    }


def bins_hz(config: SpectrogramConfig) -> Float[np.ndarray, " K"]:
    """The frequency of each bin of the log axis."""
    linear_hz = np.arange(config.num_bins) * config.sample_rate_hz / config.fft_size
    return frequency_warp(config.num_warped_bins, config.num_bins) @ linear_hz


def chunk_weights(plan: ChunkPlan, num_frames: int) -> Float64[np.ndarray, "chunks frames"]:
    """The weights of all chunks of a recording, where they lie; the last one takes what the others leave."""
    numbers = list(takewhile(lambda number: plan.fits(number, num_frames), count()))
    weights = np.zeros((len(numbers) + 1, num_frames))
    for row, number in zip(weights, numbers, strict=False):
        row[plan.hop * number :][: plan.num_frames] = plan.weights(number)
    weights[-1, -plan.num_frames :] = 1 - weights[:-1, -plan.num_frames :].sum(axis=0)
    return weights


def penalty(level: Float[jax.Array, ""], gamma: float) -> Float[jax.Array, ""]:
    """What the loss adds for a mean noise activation: the loss of one bin whose masks have no weight."""
    objective = build_objective(ObjectiveConfig(name="noise_invariant", gamma=gamma))
    shape = (1, 2, 1, 1)
    noise = jnp.full(shape, jax.scipy.special.logit(level / 2))
    mixture = Mixture(jnp.ones((1, 1, 1)), jnp.zeros(shape), weight=jnp.zeros((1, 1, 1)))
    return objective(MaskLogits(jnp.zeros(shape), noise), mixture, jnp.asarray(0)).value


def draw_spectrogram(mixture: Float[np.ndarray, " L"], config: SpectrogramConfig) -> Figure:
    """The mixture on the linear axis, on the log axis, and where the bins of the latter lie."""
    magnitude = jnp.abs(stft(jnp.asarray(mixture), config))
    seen = np.asarray(log_warped_magnitude(magnitude, config)) * (20 / np.log(10))
    linear = 20 * np.log10(np.asarray(magnitude) + 1e-10)
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.7))
    shown = _show(left, linear - linear.max(), config)
    left.set_yticks(np.linspace(0, config.num_bins - 1, 9), range(9))
    left.set(title=f"STFT: {config.num_bins} linear bins", ylabel="kHz", xlabel="s")
    _show(middle, seen - linear.max(), config)
    _log_ticks(middle, config)
    middle.set(title=f"what the network sees: {config.num_warped_bins} log bins", ylabel="Hz", xlabel="s")
    figure.colorbar(shown, ax=[left, middle], label="dB below the loudest")
    right.plot(bins_hz(config) / 1000, label="log axis")
    right.plot(np.linspace(0, 8, config.num_warped_bins), "--", color="grey", label="linear axis")
    right.set(title="where its bins lie", xlabel="bin", ylabel="kHz", xlim=(0, config.num_warped_bins - 1), ylim=(0, 8))
    right.grid(alpha=0.3)
    right.legend()
    return figure


def draw_masks(sources: Float32[np.ndarray, "N L"], config: SpectrogramConfig) -> Figure:
    """The mixture and the weight of its bins; of each source the spectrogram and both masks."""
    mixtures = mixtures_of(sources, config)
    binary, ratio = mixtures["binary"], mixtures["ratio"]
    figure = Figure(figsize=(11, 5), layout="constrained")
    plots = figure.subplots(2, 4, sharex=True, sharey=True)
    top = np.log(binary.magnitude.max())
    _show(plots[0, 0], (np.log(binary.magnitude) - top) * (20 / np.log(10)), config)
    _show_share(plots[1, 0], binary.weight / binary.weight.max(), config, "viridis")
    for row, kind, source, is_louder, share in zip(plots, KINDS, sources, binary.targets, ratio.targets, strict=True):
        magnitude = jnp.abs(stft(jnp.asarray(source / len(sources)), config))
        _show(row[1], (np.asarray(log_warped_magnitude(magnitude, config)) - top) * (20 / np.log(10)), config)
        _show_share(row[2], is_louder, config, "gray")
        shares = _show_share(row[3], share, config, "gray")
        for axes, title in zip(row[1:], (kind, f"{kind}: binary mask", f"{kind}: ratio mask"), strict=True):
            axes.set_title(title)
    plots[0, 0].set_title("mixture")
    plots[1, 0].set_title("weight in the loss")
    for row in plots:
        _log_ticks(row[0], config)
        row[0].set_ylabel("Hz")
    for axes in plots[1]:
        axes.set(xlabel="s", xlim=(0, SHOWN_SECONDS), xticks=range(SHOWN_SECONDS + 1))
    figure.colorbar(shares, ax=plots[:, 3], label="mask")
    return figure


def draw_chunks(config: SpectrogramConfig) -> Figure:
    """Where three chunks lie, and the weights of their masks over the frames of a recording."""
    plan = ChunkPlan(config.num_frames)
    weights = chunk_weights(plan, NUM_FRAMES)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.2))
    starts = [plan.hop * number for number in range(len(weights) - 1)] + [NUM_FRAMES - plan.num_frames]
    for number, (start, row) in enumerate(zip(starts, weights, strict=True), 1):
        above.barh(-number, plan.num_frames, left=start, color=f"C{number - 1}", alpha=0.5)
        above.text(start + plan.num_frames / 2, -number, f"chunk {number}", ha="center", va="center")
        frames = np.arange(start, start + plan.num_frames)
        below.plot(frames, row[frames], color=f"C{number - 1}", label=f"chunk {number}")
    below.plot(weights.sum(axis=0), ":", color="black", label="sum")
    above.set(yticks=[], title="what the network sees at once")
    below.set(xlabel="frame of the recording", ylabel="weight of its masks", ylim=(-0.05, 1.1), xlim=(0, NUM_FRAMES))
    below.grid(alpha=0.3)
    below.legend(loc="center left")
    return figure


def draw_noise() -> Figure:
    """The cost of a bin by its query mask beside a noise mask, and what the regularizer adds."""
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    masks = jnp.linspace(0.005, 0.995, 199)
    for number, noise in enumerate(NOISE_MASKS):
        logits = jax.scipy.special.logit(masks), jnp.full_like(masks, jax.scipy.special.logit(max(noise, 1e-6)))
        for target, style in ((1, "-"), (0, "--")):
            cost = CRITERIA["bce"].summed(*logits, jnp.full_like(masks, target))
            label = f"noise {noise:g}, target {target}"
            left.plot(masks, np.asarray(cost), style, color=f"C{number}", label=label)
    left.set(title="cost of a bin", xlabel="query mask", ylabel="cross entropy", xlim=(0, 1), ylim=(0, 4))
    levels = jnp.linspace(1e-4, 2 - 1e-4, 201)
    for gamma in GAMMAS:
        added = jax.vmap(lambda level, gamma=gamma: penalty(level, gamma))(levels)
        right.plot(levels, np.asarray(added), label=f"gamma = {gamma:g}")
    right.set(title="what the regularizer adds", xlabel="A, mean noise activation", ylabel="loss", xlim=(0, 2))
    right.set_ylim(0, None)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncol=len(NOISE_MASKS), fontsize=8)
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def measure(sources: Float32[np.ndarray, "N L"], config: SpectrogramConfig) -> dict[str, Any]:
    """The figures that the page quotes."""
    mixtures, parts = mixtures_of(sources, config), sources / len(sources)
    mixture, length = parts.sum(axis=0), sources.shape[-1]
    estimates = {"mixture": np.broadcast_to(mixture, parts.shape)}
    for name, made in mixtures.items():
        estimates[name] = np.asarray(apply_masks(jnp.asarray(made.targets), stft(mixture, config), config, length))
    hz, binary = bins_hz(config), mixtures["binary"]
    unread = ~frequency_warp(config.num_warped_bins, config.num_bins).any(axis=0)
    masked = binary.targets.sum(axis=0)
    weight = binary.weight / binary.weight.sum()
    return {
        "sdr_db": {name: np.round(sdr(parts, found), 1).tolist() for name, found in estimates.items()},
        "spacing_hz": {"lowest": round(float(hz[1] - hz[0]), 1), "highest": round(float(hz[-1] - hz[-2]), 1)},
        "middle_hz": round(float(np.median(hz))),
        "share_of_bins_below_1_khz": round(float(np.mean(hz < 1000)), 2),
        "linear_bins_not_read": int(unread.sum()),
        "first_of_them_hz": round(float(np.argmax(unread) * config.sample_rate_hz / config.fft_size)),
        "share_in_both_masks": {
            "of_bins": round(float(np.mean(masked == 2)), 3),
            "of_weight": round(float(weight[masked == 2].sum()), 3),
        },
        "share_in_no_mask": round(float(np.mean(masked == 0)), 4),
    }


def _show(axes: Axes, level_db: Float[np.ndarray, "K T"], config: SpectrogramConfig) -> AxesImage:
    """A spectrogram in dB, over seconds and bins, from 0 down to -RANGE_DB."""
    scale = matplotlib.colors.Normalize(-RANGE_DB, 0)
    return _image(axes, level_db, config, cmap=matplotlib.colormaps["magma"].resampled(RANGE_DB // STEP_DB), norm=scale)


def _show_share(axes: Axes, share: Float[np.ndarray, "K T"], config: SpectrogramConfig, colours: str) -> AxesImage:
    """A mask or a weight from 0 to 1, over seconds and bins."""
    return _image(axes, share, config, cmap=matplotlib.colormaps[colours].resampled(10), vmin=0, vmax=1)


def _image(axes: Axes, image: Float[np.ndarray, "K T"], config: SpectrogramConfig, **how: Any) -> AxesImage:
    seconds = config.num_samples / config.sample_rate_hz
    extent = (0, seconds, -0.5, len(image) - 0.5)
    return axes.imshow(image, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **how)


def _log_ticks(axes: Axes, config: SpectrogramConfig) -> None:
    """Frequencies in place of the numbers of log bins."""
    places = np.interp(TICKS_HZ, bins_hz(config), np.arange(config.num_warped_bins))
    axes.set_yticks(places, [f"{hz:,}" for hz in TICKS_HZ])


def write(figure: Figure, path: Path) -> None:
    """Writes a PNG of few colours, which keeps it small."""
    save_figure(figure, path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the pictures (default: docs/pictures)")
    options = parser.parse_args()
    config = SpectrogramConfig()
    sources = make_sources(config)
    options.out.mkdir(parents=True, exist_ok=True)
    write(draw_spectrogram(sources.mean(axis=0), config), options.out / "spectrogram.png")
    write(draw_masks(sources, config), options.out / "masks.png")
    write(draw_chunks(config), options.out / "chunks.png")
    write(draw_noise(), options.out / "noise.png")
    print(json.dumps(measure(sources, config)))


if __name__ == "__main__":
    main()
