"""A step of several members at once against a step of each alone, at the demo's size: by `lax.map` and by `vmap`.

All take turns. The ratios are to the sum of the single steps in the same turn; compilation is not counted.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.machine import machine
from benchmarks.train_step import random_batch, seconds_of
from clipsep_jax.config import Config
from clipsep_jax.configs import clipsep_nit
from clipsep_jax.training.members import JointTrainer
from clipsep_jax.training.step import Trainer
from clipsep_jax.training.sweep import GAMMAS, members_of, read_variation


class AtOnce(JointTrainer):
    """All members in one batched computation, by `jax.vmap`."""

    def _each(self, function: Callable, state: Any, recipe: Any, *shared: Any) -> Any:
        return jax.vmap(lambda *member: self._of_member(function, member, shared))(state, recipe)


def stepper(trainer: Trainer, batch: Any, times: int = 1) -> Callable[[], None]:
    """A function that takes `times` steps and waits for them."""
    state = trainer.init()

    def step() -> None:
        nonlocal state
        for _ in range(times):
            state, _metrics = trainer.train_step(state, batch)
        jax.block_until_ready(state)

    return step


def measure(gammas: str, num_turns: int) -> dict[str, Any]:
    config = Config.from_config_dict(clipsep_nit.get_config("toy"))
    configs = list(members_of(config, [read_variation(f"objective.gamma={gammas}", config)]).values())
    batch = random_batch(config)
    steps = {
        "single": stepper(Trainer(config), batch, len(configs)),
        "map": stepper(JointTrainer(configs), batch),
        "vmap": stepper(AtOnce(configs), batch),
    }
    turns = [{name: seconds_of(step) for name, step in steps.items()} for _ in range(1 + num_turns)][1:]
    ratios = {name: [turn[name] / turn["single"] for turn in turns] for name in ("map", "vmap")}
    return {
        "members": len(configs),
        "single_seconds": round(statistics.median(turn["single"] for turn in turns), 3),
        **{f"{name}_ratio": round(statistics.median(values), 3) for name, values in ratios.items()},
        **{f"{name}_ratio_range": [round(min(values), 3), round(max(values), 3)] for name, values in ratios.items()},
        "device": jax.devices()[0].device_kind,
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--gammas", default=GAMMAS, help=f"default: {GAMMAS}")
    options = parser.parse_args()
    print(json.dumps(measure(options.gammas, options.turns)))


if __name__ == "__main__":
    main()
