"""A sweep over gamma against single runs of the same length, at the demo's size: the commands that a user types.

Everything from start to end counts: imports, compilation, input, validation, checkpoints. No program is compiled
before. Half of the single runs come before the sweep, half after it. Also reports the sweep's result.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import machine
from clipsep_jax.configs import clipsep_nit
from clipsep_jax.training.sweep import GAMMAS


def seconds_of_command(arguments: Sequence[str], cache: Path) -> float:
    """Wall time of a clipsep command; compiled programs are kept in `cache`."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "clipsep_jax.cli", *arguments], env=environment, stdout=sys.stderr, check=True
    )
    return time.perf_counter() - start


def measure(folder: Path, gammas: Sequence[str], steps: int, options: Sequence[str]) -> dict[str, Any]:
    """Seconds of both, and the noise activation of each member."""
    shared = [
        "--config=configs/clipsep_nit.py:toy",
        f"--config.data.records={folder / 'records'}",
        f"--config.train.steps={steps}",
        *options,
    ]
    config = clipsep_nit.get_config("toy")
    _make_records(folder / "records", config)

    def single(gamma: str) -> float:
        arguments = [f"--workdir={folder / gamma}", f"--config.objective.gamma={gamma}"]
        return seconds_of_command(["train", *shared, *arguments], folder / "cache_single")

    half = len(gammas) // 2
    singles = [single(gamma) for gamma in gammas[:half]]
    together = ["sweep-gamma", *shared, f"--workdir={folder / 'sweep'}", f"--gammas={','.join(gammas)}"]
    seconds = seconds_of_command([*together, "--num-mixtures=0"], folder / "cache_sweep")
    singles += [single(gamma) for gamma in gammas[half:]]
    with (folder / "sweep" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    activations = {row["objective.gamma"]: round(float(row["mean_noise_activation"]), 3) for row in rows}
    return {
        "sweep_seconds": round(seconds, 1),
        "single_seconds": [round(one, 1) for one in singles],
        "ratio": round(seconds / sum(singles), 3),
        "mean_noise_activation": activations,
        "steps": steps,
    }


def _make_records(folder: Path, config: Any) -> None:
    from clipsep_jax.demo.toy.records import make_toy_records

    make_toy_records(folder, config.toy.num_clips, config.toy.encoder_steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200, help="steps of each run (default: the demo's 1200)")
    parser.add_argument("--gammas", default=GAMMAS, help=f"default: {GAMMAS}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and keep the runs")
    options, more = parser.parse_known_args()
    if options.keep and options.keep.is_dir() and any(path.name != "records" for path in options.keep.iterdir()):
        parser.error(f"{options.keep} holds more than records; give another --keep")
    with TemporaryDirectory() as temporary:
        facts = measure(options.keep or Path(temporary), options.gammas.split(","), options.steps, more)
    print(json.dumps(facts | machine()))


if __name__ == "__main__":
    main()
