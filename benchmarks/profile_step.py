"""Where the time of a train step goes on CPU.

Every matrix product of the compiled step is run again by itself: `products_share` is their time over that of the step.
Their rate is to be compared with `gemm_gflop_per_second`, that of a large square product in the same run. The other
operations are taken from a trace, as shares of their sum; they overlap with products, so their time in seconds would
mean little. `kernel_share` is the operating system's part of the CPU time: mapping fresh pages for temporary arrays.
"""

import argparse
import gzip
import json
import re
import resource
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from benchmarks.machine import machine
from benchmarks.train_step import OurStep, nit_config, seconds_of

TURNS = 5
GEMM_SIDE = 2048

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\S+?)(?:\{[\d,]*\})? ([\w\-]+)\((.*)$")
_PRODUCT = re.compile(r"^%?([\w.\-]+), %?([\w.\-]+)\)")
_DIMENSIONS = ("lhs_contracting_dims", "rhs_contracting_dims", "lhs_batch_dims", "rhs_batch_dims")


@dataclass(frozen=True)
class Product:
    """A matrix product of XLA: shapes of both sides, and which axes are summed and which shared."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]  # in the order of _DIMENSIONS

    @property
    def gflop(self) -> float:
        kept = [n for i, n in enumerate(self.right) if i not in self.axes[1] and i not in self.axes[3]]
        return 2 * float(np.prod(self.left)) * float(np.prod(kept)) / 1e9

    def seconds(self) -> float:
        """Median time by itself."""
        summed, right_summed, shared, right_shared = self.axes
        dimensions = ((summed, right_summed), (shared, right_shared))
        multiply = jax.jit(lambda a, b: jax.lax.dot_general(a, b, dimensions))
        arrays = [jax.numpy.ones(shape) for shape in (self.left, self.right)]
        jax.block_until_ready(multiply(*arrays))
        return statistics.median(seconds_of(lambda: jax.block_until_ready(multiply(*arrays))) for _ in range(TURNS))


@dataclass(frozen=True)
class Instruction:
    computation: str
    shape: str
    kind: str
    arguments: str


def instructions_of(program: str) -> dict[str, Instruction]:
    """The instructions of a compiled program by their names."""
    found, computation = {}, ""
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif instruction := _INSTRUCTION.match(line):
            found[instruction[1]] = Instruction(computation, *instruction.groups()[1:])
    return found


def products_of(instructions: dict[str, Instruction]) -> Counter[Product]:
    """The matrix products of a program, and how often each occurs."""
    products: Counter[Product] = Counter()
    for instruction in instructions.values():
        if instruction.kind != "dot":
            continue
        sides = _PRODUCT.match(instruction.arguments)
        if sides is None:
            raise ValueError(f"this version of XLA writes a product in another form: {instruction.arguments}")
        shapes = [_numbers(instructions[side].shape.partition("[")[2]) for side in sides.groups()]
        axes = [re.search(rf"{name}=\{{([\d,]*)\}}", instruction.arguments) for name in _DIMENSIONS]
        products[Product(*shapes, tuple(_numbers(found[1]) if found else () for found in axes))] += 1
    return products


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def kind_of(name: str, instructions: dict[str, Instruction]) -> str:
    """What an executed operation does, in a few words."""
    instruction = instructions[name]
    called = re.search(r"calls=%?([\w.\-]+)", instruction.arguments)
    inside = {other.kind for other in instructions.values() if called and other.computation == called[1]}
    if "dot" in inside or instruction.kind == "dot":
        return "products"
    if "jvp" not in instruction.arguments and "op_name" in instruction.arguments:
        return "optimizer"
    if instruction.kind == "fft":
        return "fft"
    if "reduce" in inside or instruction.kind in ("reduce", "reduce-window"):
        return "sums"
    moving = ("concatenate", "copy", "slice", "pad", "transpose")
    return "copies" if any(word in name for word in moving) else "elementwise"


def trace_kinds(step: OurStep, instructions: dict[str, Instruction]) -> dict[str, float]:
    """Shares of the traced time by kind, without the products."""
    with TemporaryDirectory() as temporary:
        with jax.profiler.trace(temporary):
            for _ in range(TURNS):
                step()
        (path,) = Path(temporary).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("ph") == "X" and event["name"] in instructions:
            spent[kind_of(event["name"], instructions)] += event["dur"]
    if not spent["products"]:
        raise ValueError("the trace does not name the operations that ran")
    del spent["products"]
    return {kind: round(time / spent.total(), 2) for kind, time in spent.most_common()}


def cpu_seconds() -> tuple[float, float]:
    """User and system CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime


def measure(width: int, batch_size: int) -> dict[str, Any]:
    step = OurStep(nit_config(width, batch_size))
    for _ in range(2):
        step()
    before = cpu_seconds()
    seconds = statistics.median(seconds_of(step) for _ in range(2 * TURNS))
    user, system = (after - start for after, start in zip(cpu_seconds(), before, strict=True))
    instructions = instructions_of(step.compiled.as_text())
    products = products_of(instructions)
    gflop = sum(product.gflop * count for product, count in products.items())
    product_seconds = sum(product.seconds() * count for product, count in products.items())
    square = Product((GEMM_SIDE, GEMM_SIDE), (GEMM_SIDE, GEMM_SIDE), ((1,), (0,), (), ()))
    return {
        "seconds_per_step": round(seconds, 4),
        "products_gflop": round(gflop, 1),
        "products_share": round(product_seconds / seconds, 2),
        "products_gflop_per_second": round(gflop / product_seconds),
        "gemm_gflop_per_second": round(square.gflop / square.seconds()),
        "kernel_share": round(system / (user + system), 2),
        "share_of_the_rest": trace_kinds(step, instructions),
        "batch": batch_size,
        "width": width,
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first level")
    options = parser.parse_args()
    print(json.dumps(measure(options.width, options.batch)))


if __name__ == "__main__":
    main()
