"""Compiled steps that test runs share, which would each trace and load them again."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from clipsep_jax.config import OptimizerConfig
from clipsep_jax.training.step import Trainer

PROGRAMS = ("init", "compiled_train_step", "compiled_validation_step")
OUTSIDE = {  # what no program depends on; the numbers of the objective and of the optimizer are its data
    "objective": {"gamma": 0.0, "regularizer_weight": 0.0, "noise_warmup_steps": 0},
    "optimizer": vars(OptimizerConfig()),
    "data": {"records": "", "read_threads": 1, "read_workers": 0, "train_split": "", "validation_split": ""},
    "query": {"encoder": "", "table": ""},
    "train": dict.fromkeys(("steps", "log_every", "validate_every", "validation_batches", "board_mixtures"), 1),
    "checkpoint": {"save_every": 1, "keep_latest": 2},
}


@contextmanager
def sharing_programs() -> Iterator[None]:
    """Lets trainers that are built meanwhile share their programs, where the configs tell that they are the same."""
    build, shared = Trainer.__init__, {}

    def build_sharing(trainer: Trainer, *arguments: Any, **options: Any) -> None:
        build(trainer, *arguments, **options)
        if trainer.encode is None:
            own = {name: getattr(trainer, name) for name in PROGRAMS}
            vars(trainer).update(shared.setdefault(_programs_of(trainer), own))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__init__", build_sharing)
        yield


def _programs_of(trainer: Trainer) -> Hashable:
    configs = getattr(trainer, "configs", [trainer.config])
    return type(trainer), trainer.mesh, *(config.replace(**OUTSIDE) for config in configs)
