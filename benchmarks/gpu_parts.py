"""What `benchmarks.gpu` measures, a function each, run in a process of its own; each gives one or several results."""

import gzip
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import strided_forms
from benchmarks.train_step import OurStep, measure, nit_config, seconds_of
from clipsep_jax.models.layers import upsample_conv
from clipsep_jax.models.unet import level_widths
from clipsep_jax.training.arithmetic import count_flops, peak_flops
from clipsep_jax.training.step import Trainer

Result = dict[str, Any]
PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# Kernels by their names, the first that fits.
_KINDS = {
    "convolutions": r"conv|cudnn|dgrad|wgrad|fprop",
    "products": r"gemm|cutlass|nvjet|cublas|dot",
    "copies": r"memcpy|memset",
    "layout": r"nchw|nhwc|transpose",
    "sums": r"reduce",
    "concatenations": r"concatenate",
    "other fusions": r"fusion",
}


def step(precision: str, batch: str, width: str = "64") -> Iterator[Result]:
    """Our step: blocked, and dispatched back to back."""
    config = nit_config(int(width), int(batch), precision)
    ours = OurStep(config)
    blocked = [seconds_of(ours) for _ in range(8)][3:]
    together = seconds_of(lambda: _back_to_back(ours, 20)) / 20
    flops = count_flops(Trainer(config).compiled_train_step.trace(ours.state, ours.batch, ours.recipe, None).jaxpr)
    peak = peak_flops(jax.devices()[0].device_kind, precision)
    memory = jax.devices()[0].memory_stats() or {}
    yield {
        "blocked_milliseconds": _milliseconds(statistics.median(blocked)),
        "milliseconds": _milliseconds(together),
        "examples_per_second": round(config.data.batch_size / together, 1),
        "compile_seconds": round(ours.compile_seconds, 1),
        "mfu": round(flops / together / peak, 3) if peak else None,
        "peak_megabytes": round(memory.get("peak_bytes_in_use", 0) / 1e6),
    }


def _back_to_back(ours: OurStep, times: int) -> None:
    for _ in range(times):
        ours.state, metrics = ours.compiled(ours.state, ours.batch, ours.recipe, None)
    jax.block_until_ready(metrics)


def torch(arrangement: str, precision: str, batch: str, width: str = "64") -> Iterator[Result]:
    """Our step beside PyTorch's, in turns."""
    facts = measure(nit_config(int(width), int(batch), precision), 6, arrangement)
    names = (
        "seconds_per_step",
        "reference_seconds",
        "ratio_median",
        "ratio_min",
        "ratio_max",
        "ratio_with_clip_median",
    )
    yield {name: facts[name] for name in names}


def profile(precision: str, batch: str, width: str = "64") -> Iterator[Result]:
    """Milliseconds of a step's kernels by kind, and the longest ones."""
    ours = OurStep(nit_config(int(width), int(batch), precision))
    times = 4
    _back_to_back(ours, 3)
    with TemporaryDirectory() as temporary:
        with jax.profiler.trace(temporary):
            _back_to_back(ours, times)
        (path,) = Path(temporary).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    spent = Counter[str]()
    for name, microseconds in _kernels(events):
        spent[name] += microseconds / times / 1e3
    by_kind = Counter[str]()
    for name, milliseconds in spent.items():
        by_kind[next((kind for kind, words in _KINDS.items() if re.search(words, name.lower())), "other")] += (
            milliseconds
        )
    yield {
        "milliseconds_by_kind": {kind: round(value, 3) for kind, value in by_kind.most_common()},
        "longest": {name[:60]: round(value, 3) for name, value in spent.most_common(12)},
    }


def _kernels(events: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Names and microseconds of what ran on the streams of a device, or of XLA's operations on a CPU."""
    names = {
        (event["pid"], event.get("tid")): event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
    }
    for event in events:
        if event.get("ph") != "X":
            continue
        process = names.get((event["pid"], None), "")
        thread = names.get((event["pid"], event["tid"]), "")
        if ("GPU" in process and "Stream" in thread) or ("CPU" in process and "hlo_op" in event.get("args", {})):
            yield event["name"], event["dur"]


def ceilings(side: str = "8192") -> Iterator[Result]:
    """What the device does at most: products and copies."""
    n = int(side)
    found: Result = {}
    for name, precision in (("bfloat16", None), ("float32", "highest"), ("tf32", "default")):
        a = jnp.ones((n, n), PRECISIONS.get(name, jnp.float32))
        work = jax.jit(lambda a, precision=precision: jnp.matmul(a, a, precision=precision))
        found[f"{name}_teraflops"] = round(2 * n**3 / _seconds(work, a) / 1e12, 1)
    numbers = jnp.ones(4 * n * n, jnp.float32)
    found["copy_gigabytes_per_second"] = round(2 * numbers.nbytes / _seconds(jax.jit(lambda x: x + 1), numbers) / 1e9)
    yield found


def _seconds(work: Callable, *arguments: Any) -> float:
    jax.block_until_ready(work(*arguments))
    return statistics.median(seconds_of(lambda: jax.block_until_ready(work(*arguments))) for _ in range(5))


def strided(precision: str, batch: str, width: str = "64") -> Iterator[Result]:
    """Forms of a strided convolution, by size."""
    yield {"milliseconds": strided_forms.measure(int(width), int(batch), precision)}


def up(precision: str, batch: str, width: str = "64") -> Iterator[Result]:
    """Up-convolution at the low resolution against upsampling first, by size, value and gradients."""
    config, rng = nit_config(int(width)), np.random.default_rng(0)
    widths = level_widths(config.model)
    for level, num_out in enumerate(widths[:-1]):
        side = config.spectrogram.num_frames // 2 ** (level + 2)
        num_in = widths[level + 1] * (2 if level < len(widths) - 2 else 1)
        shapes = (int(batch), side, side, num_in), (num_in, 3, 3, num_out), (int(batch), 2 * side, 2 * side, num_out)
        arrays = [jnp.asarray(rng.normal(size=shape), PRECISIONS[precision]) for shape in shapes]
        yield {
            "size": f"{side} x {side} x {num_in} -> {num_out}",
            "low_resolution": strided_forms.milliseconds(upsample_conv, *arrays),
            "upsampled_first": strided_forms.milliseconds(_upsampled_first, *arrays),
        }


def _upsampled_first(x: jax.Array, kernel: jax.Array) -> jax.Array:
    places = [np.linspace(0, side - 1, 2 * side, dtype=np.float32) for side in x.shape[1:3]]
    for axis, place in enumerate(places, 1):
        low = (
            np.minimum(np.floor(place).astype(int), x.shape[axis] - 2)
            if x.shape[axis] > 1
            else np.zeros(len(place), int)
        )
        share = jnp.asarray(place - low, x.dtype).reshape([-1 if i == axis else 1 for i in range(4)])
        high = np.minimum(low + 1, x.shape[axis] - 1)
        x = jnp.take(x, low, axis) * (1 - share) + jnp.take(x, high, axis) * share
    kernel = kernel.transpose(1, 2, 0, 3)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def members() -> Iterator[Result]:
    """A step of several members at once, by map and vmap."""
    from benchmarks.members import measure as measure_members
    from clipsep_jax.training.sweep import GAMMAS

    yield measure_members(GAMMAS, 4)


def train(precision: str, batch: str, steps: str, width: str = "64") -> Iterator[Result]:
    """Training on random records, as `clipsep train` does: what it says of its own speed.

    `waits_for_input` is the share of the time after compiling in which the device lacked a batch.
    """
    from benchmarks.random_records import write_random_records
    from clipsep_jax.training.loop import train as run
    from clipsep_jax.training.workdir import Workdir

    told: list[dict[str, float]] = []
    write = Workdir.write

    def keep(workdir: Workdir, step: int, board_only: dict[str, float]) -> None:
        told.append(board_only)
        write(workdir, step, board_only)

    config = nit_config(int(width), int(batch), precision)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "records"
        write_random_records(folder, config, max(256, 4 * int(batch)), split="train")
        few = {"steps": int(steps), "log_every": max(1, int(steps) // 4), "validate_every": 10**6}
        config = config.replace(data={"records": str(folder)}, train=few, checkpoint={"save_every": 10**6})
        with patch.object(Workdir, "write", keep):
            run(config, Path(temporary) / "workdir")
    last = told[-2]  # before the save at the end
    waiting = last["input"] / max(1e-9, 1 - last["compile"])
    yield {name: round(value, 3) for name, value in last.items()} | {"waits_for_input": round(waiting, 3)}


def _milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 3)


PARTS = {part.__name__: part for part in (step, torch, profile, ceilings, strided, up, members, train)}
