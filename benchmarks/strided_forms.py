"""Milliseconds of each form of a strided convolution, value and gradients, at the levels of the full-size network.

`chosen` is the form that the network takes on this backend.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.machine import machine
from benchmarks.train_step import nit_config, seconds_of
from clipsep_jax.models import layers
from clipsep_jax.models.unet import level_widths

TURNS = 9
FORMS = (layers.native_strided_conv, layers.matmul_strided_conv, layers.winograd_strided_conv)


def milliseconds(form: Callable, x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> float:
    """Median over TURNS of value and gradients."""

    @jax.jit
    def work(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> Any:
        value, pullback = jax.vjp(form, x, kernel)
        return value, pullback(cotangent)

    jax.block_until_ready(work(x, kernel, cotangent))
    turns = [seconds_of(lambda: jax.block_until_ready(work(x, kernel, cotangent))) for _ in range(TURNS)]
    return round(1000 * statistics.median(turns), 2)


def measure(width: int, batch_size: int, precision: str = "float32") -> dict[str, Any]:
    """The milliseconds of each form, by size."""
    config = nit_config(width)
    widths, rng = level_widths(config.model), np.random.default_rng(0)
    found = {}
    for level, (num_in, num_out) in enumerate(zip([1, *widths], widths, strict=False)):
        side = config.spectrogram.num_frames // 2**level
        shapes = (batch_size, side, side, num_in), (4, 4, num_in, num_out), (batch_size, side // 2, side // 2, num_out)
        arrays = [jax.numpy.asarray(rng.normal(size=shape), precision) for shape in shapes]
        forms = FORMS if side % 4 == 0 else FORMS[:2]
        times = {form.__name__.removesuffix("_strided_conv"): milliseconds(form, *arrays) for form in forms}
        chosen = layers.strided_form(shapes[0], arrays[0].dtype).__name__.removesuffix("_strided_conv")
        found[f"{side} x {side} x {num_in}"] = times | {"chosen": chosen}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first level")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    found = measure(options.width, options.batch, options.precision)
    facts = {"milliseconds": found, "precision": options.precision, "batch": options.batch, "width": options.width}
    print(json.dumps(facts | {"device": jax.devices()[0].device_kind, **machine()}))


if __name__ == "__main__":
    main()
