"""The training loop around a step that does nothing: how many clips a second the host could feed a device.

Records of 10 s with pictures, as `clipsep prepare --clip` stores them, in the page cache. `own_milliseconds` is what
the main thread spends on a step beside waiting for its batch; `p90_to_median` tells how evenly steps come.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.machine import machine
from benchmarks.random_records import write_random_records
from benchmarks.train_step import nit_config
from clipsep_jax.queries.kinds import IMAGE
from clipsep_jax.structures import Batch
from clipsep_jax.training.devices import make_mesh, put_ahead


def measure(num_clips: int, batch_size: int, num_steps: int, read_threads: int) -> dict[str, Any]:
    """Figures over `num_steps` steps, after a quarter of them to warm up."""
    config = nit_config(batch_size=batch_size)
    config = config.replace(data={"read_threads": read_threads})
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        records = write_random_records(Path(temporary) / "records", config, num_clips, split="train")
        batches = IMAGE.batches(config, records, "train", training=True, batch_size=batch_size)
        mesh = make_mesh()
        step = _null_step()
        state = jnp.zeros((), jnp.int32)
        waits, whole = [], []
        source = put_ahead(batches.iterate(0), mesh)
        stack.callback(getattr(source, "close", lambda: None))
        for number in range(num_steps + num_steps // 4):
            begin = time.perf_counter()
            batch = next(source)
            got = time.perf_counter()
            state = step(state, batch)
            if number >= num_steps // 4:
                waits.append(got - begin)
                whole.append(time.perf_counter() - begin)
        jax.block_until_ready(state)
    clips = batch_size * config.data.num_sources
    median = statistics.median(whole)
    return {
        "clips_per_second": round(clips * len(whole) / sum(whole), 1),
        "median_milliseconds": round(1e3 * median, 2),
        "p90_to_median": round(statistics.quantiles(whole, n=10)[-1] / median, 2),
        "own_milliseconds": round(1e3 * statistics.median(a - b for a, b in zip(whole, waits, strict=True)), 3),
        "read_threads": read_threads,
        "batch": batch_size,
        **machine(),
    }


def _null_step() -> Callable[[jax.Array, Batch], jax.Array]:
    @jax.jit
    def step(state: jax.Array, batch: Batch) -> jax.Array:
        return state + batch.sources.shape[0]

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=256, help="number of clips")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=4, help="that read (default: 4)")
    options = parser.parse_args()
    print(json.dumps(measure(options.clips, options.batch, options.steps, options.threads)))


if __name__ == "__main__":
    main()
