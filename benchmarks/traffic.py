"""Bytes that a train step moves through a GPU's memory, an example, on paper: layer by layer, and what each form moves.

Counted is what each pass over an activation reads and writes, forwards and backwards, in bfloat16 (logits, loss and
sound in float32); a pass is what XLA fuses: elementwise work with the sum, product or concatenation before or after it.
"earlier" has Flax's BatchNorm (mean, variance and application in passes of their own, three passes backwards) and a
convolution of XLA's, with its changes of layout, for the layer of one channel. "fused blends" is what one kernel for
both blends of an up-convolution would leave: it is not written.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.train_step import nit_config
from clipsep_jax.config import Config
from clipsep_jax.models.unet import level_widths

_NARROW, _WIDE = 2, 4  # bytes of a value

# Passes over an activation that BatchNorm takes, reading and writing: forwards, and backwards.
_NORM_EARLIER, _NORM = 4 + 6, 3 + 5


@dataclass(frozen=True)
class Layer:
    """Megabytes an example, in three forms."""

    name: str
    earlier: float
    now: float
    fused_blends: float


def layers(config: Config) -> Iterator[Layer]:
    """The layers of CLIPSep-NIT with late fusion, outermost first."""
    widths = level_widths(config.model)
    sides = [config.spectrogram.num_frames // 2**level for level in range(len(widths) + 1)]
    yield _first(sides[0], widths[0])
    for level in range(1, len(widths)):
        yield _down(sides[level], widths[level - 1], widths[level], normalised=level < len(widths) - 1)
    for level in reversed(range(1, len(widths))):
        num_in = widths[level] * (1 if level == len(widths) - 1 else 2)
        yield _up(sides[level + 1], num_in, widths[level - 1])
    masks = config.data.num_sources + config.model.num_noise_heads
    yield _last(sides[1], 2 * widths[0], masks)
    yield _mixture(config, masks)


def _layer(name: str, earlier: float, now: float, fused_blends: float | None = None) -> Layer:
    return Layer(name, *(value / 1e6 for value in (earlier, now, now if fused_blends is None else fused_blends)))


def _first(side: int, num_out: int) -> Layer:
    x, y = side**2, (side // 2) ** 2 * num_out
    patches = 4 * x
    native = (x + y) + (y + x) + (x + y) + 4 * (x + y)  # value, gradients by input and kernel, changes of layout
    product = (x + patches) + (patches + y) + (patches + y) + (y + patches) + (patches + x)
    norm = (_NORM_EARLIER * x, _NORM * x)
    return _layer(f"down {side} x {side} x 1", (native + norm[0]) * _NARROW, (product + norm[1]) * _NARROW)


def _down(side: int, num_in: int, num_out: int, *, normalised: bool) -> Layer:
    x, y = side**2 * num_in, (side // 2) ** 2 * num_out
    convolution = 2 * x + (x + y) + (y + x) + (x + y) + 2 * x  # leaky ReLU, value, gradients, its gradient
    norms = (_NORM_EARLIER * y, _NORM * y) if normalised else (0, 0)
    return _layer(f"down {side} x {side} x {num_in}", *((convolution + norm) * _NARROW for norm in norms))


def _blends(out: float) -> tuple[float, float]:
    """Values moved by the blends of an up-convolution, and by one kernel for both."""
    taps, rows = 2.25 * out, 1.5 * out
    forwards, backwards = taps + 2 * rows + out, out + 2 * rows + taps
    return forwards + backwards, 2 * (taps + out)


def _up(side: int, num_in: int, num_out: int) -> Layer:
    x, out = side**2 * num_in, (2 * side) ** 2 * num_out
    taps = 2.25 * out
    product = (x + taps) + (taps + x) + (x + taps)
    skip = 2 * out + 3 * out  # into the concatenation, and its gradient joined with the other one
    blends, fused = _blends(out)
    rest = product + skip
    forms = (rest + blends + _NORM_EARLIER * out, rest + blends + _NORM * out, rest + fused + _NORM * out)
    return _layer(f"up {side} x {side} x {num_in}", *(form * _NARROW for form in forms))


def _last(side: int, num_features: int, masks: int) -> Layer:
    x, out = side**2 * num_features, (2 * side) ** 2 * masks
    taps = 2.25 * out
    blends, fused = _blends(out)
    product = 3 * x * _NARROW + 3 * taps * _WIDE
    loss = 6 * out * _WIDE
    return _layer("masks and loss", *(product + loss + form * _WIDE for form in (blends, blends, fused)))


def _mixture(config: Config, masks: int) -> Layer:
    spectrogram = config.spectrogram
    signals = config.data.num_sources + 1
    bins = (spectrogram.fft_size // 2 + 1) * spectrogram.num_frames
    warped = spectrogram.num_warped_bins * spectrogram.num_frames
    frames = spectrogram.fft_size * spectrogram.num_frames
    moved = signals * (2 * frames + 2 * 2 * bins + 2 * bins + 2 * warped) + 2 * masks * warped
    return _layer("mixture and targets", moved * _WIDE, moved * _WIDE)


def measure(config: Config) -> dict[str, Any]:
    """Megabytes an example by layer, and the totals."""
    rows = list(layers(config))
    forms = ("earlier", "now", "fused_blends")
    return {
        "megabytes": {row.name: {form: round(getattr(row, form), 2) for form in forms} for row in rows},
        "total": {form: round(sum(getattr(row, form) for row in rows), 1) for form in forms},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first level")
    options = parser.parse_args()
    print(json.dumps(measure(nit_config(options.width))))


if __name__ == "__main__":
    main()
