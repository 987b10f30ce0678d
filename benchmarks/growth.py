"""How cost grows: a train step with the batch, a separation with the length of the recording and with the queries.

Plots the seconds into FILE, with lines of linear growth. `exponent` is the slope between the two largest sizes on
logarithmic axes: 1 is linear, less is better.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import machine
from benchmarks.random_model import random_queries, random_sound, write_random_model
from benchmarks.train_step import OurStep, nit_config, seconds_of
from clipsep_jax.separation.separator import Separator

TURNS = 3
BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS_SECONDS = (5, 10, 30, 100, 300)
NUM_QUERIES = (1, 2, 4, 8, 16, 32)
FIXED_SECONDS = 30  # of the recording that is separated by several queries

Seconds = dict[float, float]  # by size


def seconds_by_size(sizes: Sequence[float], work_of: Callable[[float], Callable[[], Any]]) -> Seconds:
    """Median over TURNS at each size, after one turn to compile."""
    found = {}
    for size in sizes:
        work = work_of(size)
        work()
        found[size] = statistics.median(seconds_of(work) for _ in range(TURNS))
    return found


def measure(width: int) -> dict[str, Seconds]:
    """Seconds by size, for each thing that grows."""
    config = nit_config(width)
    steps = seconds_by_size(BATCHES, lambda size: OurStep(nit_config(width, int(size))))
    with TemporaryDirectory() as temporary:
        separator = Separator.load(write_random_model(Path(temporary) / "model", config))
    sounds = {seconds: random_sound(config, seconds) for seconds in (*LENGTHS_SECONDS, FIXED_SECONDS)}
    queries = random_queries(config, max(NUM_QUERIES))
    return {
        "examples in a batch": steps,
        "seconds of audio": seconds_by_size(
            LENGTHS_SECONDS, lambda size: lambda: separator.separate(sounds[size], queries[:1])
        ),
        "queries": seconds_by_size(
            NUM_QUERIES, lambda size: lambda: separator.separate(sounds[FIXED_SECONDS], queries[: int(size)])
        ),
    }


def exponent(seconds: Seconds) -> float:
    """Slope between the two largest sizes on logarithmic axes."""
    (size, before), (larger, after) = list(seconds.items())[-2:]
    return math.log(after / before) / math.log(larger / size)


def draw(found: dict[str, Seconds], path: Path) -> None:
    """One panel for each thing that grows."""
    from matplotlib.figure import Figure

    titles = ("One train step", "Separation by one query", f"Separation of {FIXED_SECONDS} s")
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, title, (name, seconds) in zip(figure.subplots(1, 3), titles, found.items(), strict=True):
        sizes, first = list(seconds), next(iter(seconds))
        axes.loglog(sizes, list(seconds.values()), "o-", label="measured")
        axes.loglog(sizes, [seconds[first] * size / first for size in sizes], "--", color="grey", label="linear")
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.minorticks_off()
        axes.set(title=title, xlabel=name, ylabel="seconds")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first level")
    parser.add_argument("--plot", type=Path, default=Path("growth.png"), metavar="FILE", help="picture to write")
    options = parser.parse_args()
    found = measure(options.width)
    draw(found, options.plot)
    exponents = {name: round(exponent(seconds), 2) for name, seconds in found.items()}
    facts = {name: {f"{size:g}": round(s, 4) for size, s in seconds.items()} for name, seconds in found.items()}
    print(json.dumps({"exponent": exponents, "seconds": facts, "width": options.width, **machine()}))


if __name__ == "__main__":
    main()
