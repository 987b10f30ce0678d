"""Time of a train step: CLIPSep-NIT, from int16 audio to updated weights.

With --reference it takes turns, step by step, with the official arrangement in PyTorch: `ratio` is the time of its
U-Net and loss (from spectrograms on) over that of our whole step; `ratio_with_clip` includes its encoding of frames,
which `clipsep prepare` does once.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import benchmarks.bare  # noqa: F401  (before the package)
from benchmarks.machine import machine
from clipsep_jax.config import Config
from clipsep_jax.mixing import apply_gain, mix
from clipsep_jax.structures import Batch
from clipsep_jax.training.step import Trainer


def nit_config(width: int = 64, batch_size: int = 4, precision: str = "float32", remat: bool = False) -> Config:
    """CLIPSep-NIT at the official size, except for the width."""
    config = Config()
    return replace(
        config,
        model=replace(config.model, width=width, num_noise_heads=2),
        objective=replace(config.objective, name="noise_invariant"),
        data=replace(config.data, batch_size=batch_size),
        train=replace(config.train, precision=precision, remat=remat),
    )


def random_batch(config: Config) -> Batch:
    rng = np.random.default_rng(0)
    shape = (config.data.batch_size, config.data.num_sources)
    return Batch(
        jnp.asarray(rng.integers(-9000, 9000, (*shape, config.spectrogram.num_samples)), jnp.int16),
        jnp.asarray(rng.uniform(0.5, 1.5, shape), jnp.float32),
        jnp.asarray(rng.normal(size=(*shape, config.model.query_size)), jnp.float32),
    )


def seconds_of(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class OurStep:
    """The compiled step and its state."""

    def __init__(self, config: Config):
        self.config, self.batch = config, random_batch(config)
        trainer = Trainer(config)
        self.recipe = trainer.recipe
        self.state = trainer.flat(trainer.init())
        jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed
        start = time.perf_counter()
        self.compiled = trainer.compiled_train_step.lower(self.state, self.batch, trainer.recipe, None).compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self) -> None:
        self.state, _metrics = self.compiled(self.state, self.batch, self.recipe, None)
        jax.block_until_ready(self.state)

    def facts(self) -> dict[str, Any]:
        memory = self.compiled.memory_analysis()
        return {
            "batch": self.config.data.batch_size,
            "width": self.config.model.width,
            "precision": self.config.train.precision,
            "remat": self.config.train.remat,
            "gflop_per_example": round(self.compiled.cost_analysis()["flops"] / self.config.data.batch_size / 1e9, 2),
            "compile_seconds": round(self.compile_seconds, 1),
            "peak_bytes": memory.temp_size_in_bytes
            + memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes,
            "device": jax.devices()[0].device_kind,
            **machine(),
        }


def reference_steps(config: Config, batch: Batch, tuned: bool) -> list[Callable[[], Any]]:
    """The official arrangement's step from spectrograms on, and its encoding of the frames of a batch."""
    import torch

    from tests.torch_reference import TorchFrameEncoder, TorchTrainer

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    mixture = mix(apply_gain(batch.sources, batch.gain), config.spectrogram, config.mixing)
    tensors = [
        torch.tensor(np.asarray(x), device=device)
        for x in (mixture.magnitude, mixture.targets, mixture.weight, batch.query)
    ]
    trainer = TorchTrainer(config, torch.float32, device=device, tuned=tuned)
    encoder = TorchFrameEncoder(device, autocast=trainer.autocast)
    num_frames = config.data.batch_size * config.data.num_sources * config.data.frames_per_clip
    pixels = torch.randn(num_frames, 3, 224, 224, device=device)
    return [lambda: trainer.step(*tensors), lambda: encoder.encode(pixels)]


def measure(config: Config, num_steps: int, reference: str | None = None) -> dict[str, Any]:
    """Medians over `num_steps` blocked steps, after two to warm up; ratios are taken within a turn.

    `reference` is "official", "tuned" or None.
    """
    ours = OurStep(config)
    others = reference_steps(config, ours.batch, reference == "tuned") if reference else []
    turns = [[seconds_of(step) for step in (ours, *others)] for _ in range(2 + num_steps)][2:]
    seconds = statistics.median(turn[0] for turn in turns)
    facts = ours.facts() | {
        "examples_per_second": round(config.data.batch_size / seconds, 3),
        "seconds_per_step": round(seconds, 4),
    }
    if reference:
        facts["reference"] = reference
        facts["reference_seconds"] = round(statistics.median(turn[1] for turn in turns), 4)
        facts["reference_clip_seconds"] = round(statistics.median(turn[2] for turn in turns), 4)
        for name, ratios in {
            "ratio": [turn[1] / turn[0] for turn in turns],
            "ratio_with_clip": [(turn[1] + turn[2]) / turn[0] for turn in turns],
        }.items():
            for how, value in (("median", statistics.median(ratios)), ("min", min(ratios)), ("max", max(ratios))):
                facts[f"{name}_{how}"] = round(value, 2)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", action="store_true", help="rematerialise the levels")
    parser.add_argument(
        "--reference",
        nargs="?",
        const="official",
        choices=("official", "tuned"),
        help="measure beside PyTorch (needs the test extra), as in the official code or tuned: channels last, "
        "autocast to the same precision, TF32, torch.compile",
    )
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves PyTorch room on a GPU
    config = nit_config(options.width, options.batch, options.precision, options.remat)
    print(json.dumps(measure(config, options.steps, options.reference)))


if __name__ == "__main__":
    main()
