"""Speed and memory of separation from files to files, for recordings of several lengths, and the cost of more queries.

`real_time_factor` is seconds of audio per second of work, with decoding and writing; compiling and loading come before.
`first_block_seconds` is how long it takes from a loaded, compiled model to the first block of stems. `peak_bytes` is
the most memory that the whole process held, the compiler included; each recording is separated in a fresh process.
`eight_queries_ratio` is how many times as long eight queries take as one, from a mono file to files, by turns.
`extra_query_percent` is how much longer the mask logits of two queries take than those of one, and
`percent_per_extra_query` the same for more, divided by their number.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import soundfile

from benchmarks.machine import machine, peak_memory_bytes
from benchmarks.random_model import random_queries, write_random_model
from benchmarks.train_step import nit_config, seconds_of
from clipsep_jax.config import Config
from clipsep_jax.separation.files import Recording
from clipsep_jax.separation.job import Job, separate_file
from clipsep_jax.separation.separator import Separator
from clipsep_jax.separation.targets import Target

KINDS = {"mono 16 kHz": (16_000, 1), "stereo 44.1 kHz": (44_100, 2)}
QUERY_SECONDS, QUERY_TURNS = 60, 5


def write_noise(path: Path, kind: str, seconds: float) -> Recording:
    """A recording of noise of 16 bits."""
    rate, channels = KINDS[kind]
    rng, left = np.random.default_rng(2), round(seconds * rate)
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16") as file:
        while left > 0:
            some = min(left, 10 * rate)
            file.write(rng.uniform(-0.5, 0.5, (some, channels)).astype(np.float32))
            left -= some
    return Recording(path, PurePath(path.stem))


def job_of(config: Config, num_queries: int, out: Path) -> Job:
    queries = random_queries(config, num_queries)
    return Job(tuple(Target((query,), name=f"query {n}") for n, query in enumerate(queries)), out)


def separate_once(folder: Path, kind: str, seconds: float) -> dict[str, float]:
    """Separates a recording by one query; to be called in a fresh process."""
    separator = Separator.load(folder)
    job = job_of(separator.config, 1, folder / "out")
    separate_file(separator, write_noise(folder / "short.wav", kind, 10), job)  # compiles
    recording = write_noise(folder / "long.wav", kind, seconds)
    blocks: list[float] = []
    start = time.perf_counter()
    separated = separate_file(separator, recording, job, lambda *_: blocks.append(time.perf_counter() - start))
    for path in (*separated.paths, recording.path):
        path.unlink()
    return {
        "real_time_factor": round(seconds / separated.took_seconds, 2),
        "peak_bytes": peak_memory_bytes(),
        "first_block_seconds": round(blocks[0], 2),
    }


def in_fresh_process(folder: Path, kind: str, seconds: float) -> dict[str, float]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(separate_once, folder, kind, seconds).result()


def eight_queries_ratio(separator: Separator, folder: Path, seconds: float) -> float:
    """How many times as long eight queries take as one, from a file to files; the median of turns."""
    recording = write_noise(folder / "queries.wav", "mono 16 kHz", seconds)
    jobs = [job_of(separator.config, count, folder / "out") for count in (1, 8)]
    ratios = []
    for turn in range(1 + QUERY_TURNS):
        one, eight = (separate_file(separator, recording, job).took_seconds for job in jobs)
        if turn:  # the first one compiles
            ratios.append(eight / one)
    return round(statistics.median(ratios), 2)


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
        lengths = {
            f"{kind}, {length:g} s": in_fresh_process(folder, kind, length) for kind in KINDS for length in seconds
        }
        separator = Separator.load(folder)
        ratio = eight_queries_ratio(separator, folder, min(QUERY_SECONDS, max(seconds)))
        turns = query_seconds(separator, counts, num_turns)
    percent = [
        statistics.median(100 * (turn[1 + i] / turn[0] - 1) / (count - 1) for turn in turns)
        for i, count in enumerate(counts)
    ]
    medians = [statistics.median(turn[i] for turn in turns) for i in range(1 + len(counts))]
    return {
        **{name: {length: facts[name] for length, facts in lengths.items()} for name in next(iter(lengths.values()))},
        "eight_queries_ratio": ratio,
        "extra_query_percent": round(percent[0], 2),
        "percent_per_extra_query": {f"{n} queries": round(p, 2) for n, p in zip(counts, percent, strict=True)},
        "mask_logits_seconds": {f"{n} queries": round(s, 5) for n, s in zip((1, *counts), medians, strict=True)},
        "width": config.model.width,
        "device": jax.devices()[0].device_kind,
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[600, 7200], help="lengths of the recordings")
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first level")
    parser.add_argument("--turns", type=int, default=50, help="repeats of the comparison of queries")
    options = parser.parse_args()
    print(json.dumps(measure(nit_config(options.width), options.seconds, num_turns=options.turns)))


if __name__ == "__main__":
    main()
