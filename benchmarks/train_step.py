"""Time of a train step: CLIPSep-NIT, from int16 audio to updated weights.

python -m benchmarks.train_step [--batch 4] [--steps 10] [--width 64]
"""

import argparse
import json
import statistics
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from clipsep_jax.config import Config
from clipsep_jax.structures import Batch
from clipsep_jax.train_step import Trainer


def nit_config(width: int, batch_size: int) -> Config:
    """CLIPSep-NIT at the official size, but for the width."""
    config = Config()
    return replace(
        config,
        model=replace(config.model, width=width, num_noise_heads=2),
        objective=replace(config.objective, name="noise_invariant"),
        data=replace(config.data, batch_size=batch_size),
    )


def random_batch(config: Config) -> Batch:
    rng = np.random.default_rng(0)
    shape = (config.data.batch_size, config.data.num_sources)
    return Batch(
        jnp.asarray(rng.integers(-9000, 9000, (*shape, config.spectrogram.num_samples)), jnp.int16),
        jnp.asarray(rng.uniform(0.5, 1.5, shape), jnp.float32),
        jnp.asarray(rng.normal(size=(*shape, config.model.query_size)), jnp.float32),
    )


def measure(config: Config, num_steps: int) -> dict[str, float | int | str]:
    """Compiles the step, runs it `num_steps` times, blocking after each, and takes the median."""
    trainer, batch = Trainer(config), random_batch(config)
    state = trainer.init()
    start = time.perf_counter()
    step = trainer.train_step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(num_steps + 1):
        start = time.perf_counter()
        state, _metrics = step(state, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    memory = step.memory_analysis()
    return {
        "batch": config.data.batch_size,
        "width": config.model.width,
        "examples_per_second": round(config.data.batch_size / median, 3),
        "seconds_per_step": round(median, 4),
        "gflop_per_example": round(step.cost_analysis()["flops"] / config.data.batch_size / 1e9, 2),
        "compile_seconds": round(compile_seconds, 1),
        "peak_bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    print(json.dumps(measure(nit_config(options.width, options.batch), options.steps)))


if __name__ == "__main__":
    main()
