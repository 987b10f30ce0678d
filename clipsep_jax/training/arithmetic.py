"""How much arithmetic a compiled function does, counted in its program, and how much of it a device could do."""

import math
import re
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

# Peak of dense products by the makers' data sheets, in FLOP a second: in bfloat16, and in float32 or TF32. Names are
# words of those that devices have; the first that fits holds.
_PEAKS = {
    "GH200": (989e12, 495e12),
    "H200": (989e12, 495e12),
    "H100 PCIe": (756e12, 378e12),
    "H100": (989e12, 495e12),
    "A100": (312e12, 156e12),
    "A10": (125e12, 62.5e12),
    "L40S": (362e12, 183e12),
    "L40": (181e12, 90.5e12),
    "L4": (121e12, 60e12),
    "RTX 4090": (165e12, 82.6e12),
    "RTX 3090": (71e12, 35.6e12),
    "TPU v6 lite": (918e12, 459e12),
    "TPU v6e": (918e12, 459e12),
    "TPU v5 lite": (197e12, 98e12),
    "TPU v5e": (197e12, 98e12),
    "TPU v5p": (459e12, 229e12),
    "TPU v5": (459e12, 229e12),  # as v5p may call itself
    "TPU v4": (275e12, 137e12),
}


def peak_flops(device_kind: str, precision: str) -> float | None:
    """What a device could do at most, in FLOP a second; None if it is not known."""
    for name, (in_bfloat16, in_float32) in _PEAKS.items():
        if re.search(rf"\b{name}\b", device_kind):
            return in_bfloat16 if precision == "bfloat16" else in_float32
    return None


def count_flops(program: ClosedJaxpr | Jaxpr) -> float:
    """Multiplications and additions of the products and convolutions of a program, over all devices.

    XLA's own count leaves out what it gives to libraries, as on GPUs. Elementwise work, sums and FFTs are not counted;
    of branches, the largest counts, and of loops with an unknown number of turns, one turn.
    """
    return math.fsum(map(_flops_of, program.eqns))


def _flops_of(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        numbers = parameters["dimension_numbers"]
        kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        products = math.prod(out) * math.prod(kernel) / kernel[numbers.rhs_spec[0]]
        return 2.0 * products / math.prod(parameters["lhs_dilation"])  # without those by zeros between the inputs
    inner = [count_flops(program) for value in parameters.values() for program in _programs(value)]
    if name == "cond":
        return max(inner, default=0.0)
    return _times(name, parameters) * math.fsum(inner)


def _times(name: str, parameters: dict[str, Any]) -> int:
    if name == "scan":
        return parameters["length"]
    if name == "shard_map":  # its shapes are those of one device, along the axes that it maps
        sizes = dict(parameters["mesh"].shape)
        axes = parameters["newly_manual_axes"] if "newly_manual_axes" in parameters else parameters["manual_axes"]
        return math.prod(sizes[axis] for axis in axes)
    return 1


def _programs(value: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
    for part in value if isinstance(value, tuple | list) else [value]:
        if isinstance(part, ClosedJaxpr | Jaxpr):
            yield part
