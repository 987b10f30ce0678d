"""The training loop around a step that does nothing: how many clips a second the host could feed a device.

Records of 10 s with pictures, as `clipsep prepare --clip` stores them, in the page cache; the state of CLIPSep-NIT at
full size. Turns with all workers, with one, and with threads alternate. `own_milliseconds` is what the main thread
spends on a step beside waiting for its batch, that is, on giving the step to the devices; `p90_to_median` tells how
evenly steps come; `worker_megabytes` is memory that a worker shares with nothing.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from benchmarks.machine import machine
from benchmarks.random_records import write_random_records
from benchmarks.train_step import nit_config
from clipsep_jax.config import Config
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.queries.kinds import IMAGE
from clipsep_jax.structures import Batch
from clipsep_jax.training.devices import make_mesh, put_ahead
from clipsep_jax.training.flat import Flat
from clipsep_jax.training.step import Trainer

TURNS = 3


def measure(width: int, num_clips: int, batch_size: int, num_steps: int, num_workers: int) -> dict[str, Any]:
    """Medians over TURNS turns of `num_steps` steps, each after a quarter of them to warm up."""
    config = nit_config(width, batch_size)
    with TemporaryDirectory() as temporary:
        records = write_random_records(Path(temporary) / "records", config, num_clips, split="train")
        turns = [[_turn(config, records, num_steps, n) for n in (num_workers, 1, 0)] for _ in range(TURNS)]
    first = {name: statistics.median(turn[0][name] for turn in turns) for name in turns[0][0]}

    def ratio_to(other: int) -> float:
        ratios = [turn[0]["clips_per_second"] / turn[other]["clips_per_second"] for turn in turns]
        return round(statistics.median(ratios), 2)

    return {
        **{name: round(value, 3) for name, value in first.items()},
        "ratio_to_one_worker": ratio_to(1),
        "ratio_to_threads": ratio_to(2),
        "workers": num_workers,
        "batch": batch_size,
        **machine(),
    }


def _turn(config: Config, records: RecordSet, num_steps: int, num_workers: int) -> dict[str, float]:
    config = config.replace(data={"read_workers": num_workers})
    size = config.data.batch_size
    batches = IMAGE.batches(config, records, "train", training=True, batch_size=size)
    trainer = Trainer(config)
    step, state = _null_step(), trainer.flat(trainer.init())
    waits, whole = [], []
    with closing(batches.iterate(0)) as ahead, closing(put_ahead(ahead, make_mesh())) as source:
        begin = time.perf_counter()
        state = step(state, next(source), trainer.recipe)
        started = time.perf_counter() - begin
        for number in range(num_steps + num_steps // 4):
            begin = time.perf_counter()
            batch = next(source)
            got = time.perf_counter()
            state = step(state, batch, trainer.recipe)
            if number >= num_steps // 4:
                waits.append(got - begin)
                whole.append(time.perf_counter() - begin)
        jax.block_until_ready(state)
        megabytes = _megabytes_of_children()
    median = statistics.median(whole)
    return {
        "clips_per_second": size * config.data.num_sources * len(whole) / sum(whole),
        "median_milliseconds": 1e3 * median,
        "p90_to_median": statistics.quantiles(whole, n=10)[-1] / median,
        "own_milliseconds": 1e3 * statistics.median(a - b for a, b in zip(whole, waits, strict=True)),
        "start_seconds": started,
        "worker_megabytes": max(megabytes, default=0.0),
    }


def _null_step() -> Callable[[Flat, Batch, Any], Flat]:
    """A step that takes what a real one takes, and gives the state back as it is."""
    return jax.jit(lambda state, batch, recipe: state, donate_argnums=0, keep_unused=True)


def _megabytes_of_children() -> list[float]:
    """Memory of its own of each child of this process, where /proc tells it."""
    children = [file.read_text().split() for file in Path(f"/proc/{os.getpid()}/task").glob("*/children")]
    maps = [Path(f"/proc/{child}/smaps_rollup") for part in children for child in part]
    return [
        sum(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("Pss_Anon")) / 1e3
        for path in maps
        if path.exists()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_024, help="number of clips; in few, shuffling takes longer")
    parser.add_argument("--width", type=int, default=64, help="of the network whose state is handed on")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2, help="processes that read (default: 2)")
    options = parser.parse_args()
    print(json.dumps(measure(options.width, options.clips, options.batch, options.steps, options.workers)))


if __name__ == "__main__":
    main()
