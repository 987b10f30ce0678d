"""Speed and memory of separation, for recordings of several lengths, and the cost of an extra query.

`real_time_factor` is seconds of audio per second of work; loading and compiling are reported as `start_seconds`, as
they are the same for every length. `peak_bytes` is the most memory that the whole process held, the recording, its
stems and the compiler included; each length runs in a fresh process. `extra_query_percent` is how much longer the mask
logits of two queries take than those of one, and `percent_per_extra_query` the same for more, divided by their number.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from benchmarks.machine import machine, peak_memory_bytes
from benchmarks.random_model import random_queries, random_sound, write_random_model
from benchmarks.train_step import nit_config, seconds_of
from clipsep_jax.config import Config
from clipsep_jax.separation.separator import Separator


def separate_once(folder: Path, seconds: float) -> dict[str, float]:
    """Separates a recording by one query; to be called in a fresh process."""
    start = time.perf_counter()
    separator = Separator.load(folder)
    queries = random_queries(separator.config, 1)
    separator.separate(random_sound(separator.config, 1), queries)  # compiles
    start_seconds = time.perf_counter() - start
    sound = random_sound(separator.config, seconds)
    work_seconds = seconds_of(lambda: separator.separate(sound, queries))
    return {
        "real_time_factor": round(seconds / work_seconds, 2),
        "peak_bytes": peak_memory_bytes(),
        "work_seconds": round(work_seconds, 3),
        "start_seconds": round(start_seconds, 1),
    }


def in_fresh_process(folder: Path, seconds: float) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(separate_once, folder, seconds).result()


def query_seconds(separator: Separator, counts: Sequence[int], num_turns: int) -> list[list[float]]:
    """Seconds of the mask logits of one chunk for 1 query, then for each of `counts`, in every turn."""
    config = separator.config
    shape = (config.spectrogram.num_bins, config.spectrogram.num_frames)
    magnitude = jax.numpy.asarray(np.random.default_rng(0).random(shape, dtype=np.float32))
    queries = [jax.numpy.asarray(np.stack(random_queries(config, count))) for count in (1, *counts)]
    rng = np.random.default_rng(3)
    turns = []
    for turn in range(2 + num_turns):
        seconds = [0.0] * len(queries)
        # In a new order every turn, so that none always follows the same one.
        for i in rng.permutation(len(queries)):
            some = queries[i]
            seconds[i] = seconds_of(lambda some=some: jax.block_until_ready(separator.mask_logits(magnitude, some)))
        if turn >= 2:
            turns.append(seconds)
    return turns


def measure(
    config: Config, seconds: Sequence[float], *, counts: Sequence[int] = (2, 4, 8, 16), num_turns: int = 50
) -> dict[str, Any]:
    """Separates recordings of these lengths; then compares 1 query with each of `counts`, which starts with 2."""
    with TemporaryDirectory() as temporary:
        folder = write_random_model(Path(temporary) / "model", config)
        lengths = {f"{length:g} s": in_fresh_process(folder, length) for length in seconds}
        turns = query_seconds(Separator.load(folder), counts, num_turns)
    percent = [
        statistics.median(100 * (turn[1 + i] / turn[0] - 1) / (count - 1) for turn in turns)
        for i, count in enumerate(counts)
    ]
    medians = [statistics.median(turn[i] for turn in turns) for i in range(1 + len(counts))]
    return {
        **{name: {length: facts[name] for length, facts in lengths.items()} for name in next(iter(lengths.values()))},
        "extra_query_percent": round(percent[0], 2),
        "percent_per_extra_query": {f"{n} queries": round(p, 2) for n, p in zip(counts, percent, strict=True)},
        "mask_logits_seconds": {f"{n} queries": round(s, 5) for n, s in zip((1, *counts), medians, strict=True)},
        "width": config.model.width,
        "device": jax.devices()[0].device_kind,
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 600, 7200], help="lengths of the recordings")
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first level")
    parser.add_argument("--turns", type=int, default=50, help="repeats of the comparison of queries")
    options = parser.parse_args()
    print(json.dumps(measure(nit_config(options.width), options.seconds, num_turns=options.turns)))


if __name__ == "__main__":
    main()
