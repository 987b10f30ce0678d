"""One process of a training run of two, or of one; see `test_processes.py`.

python -m tests.distributed.one_of_two RECORDS WORKDIR STEPS SAVE_EVERY MEMBERS [PORT PROCESS_ID]

With several members they are trained together, each in a folder of WORKDIR; with none, the first process fails alone.
With no steps, it writes what a step gives.
"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from clipsep_jax.config import Config
from clipsep_jax.errors import InputError
from clipsep_jax.training.curves import MetricsLog
from clipsep_jax.training.devices import Cluster, first_process_alone, make_mesh, start
from clipsep_jax.training.loop import train
from clipsep_jax.training.members import train_together
from clipsep_jax.training.step import Trainer
from clipsep_jax.training.stopping import Interrupted
from tests.distributed.eight_devices import OneStep, batch_of, config_of, on_host
from tests.small import small_config


def training_config(records: Path, steps: int, save_every: int = 1) -> Config:
    config = small_config(records, steps=steps, validate_every=steps)
    checkpoint = replace(config.checkpoint, save_every=save_every)
    return replace(config, data=replace(config.data, batch_size=4), checkpoint=checkpoint)


def write_step(workdir: Path) -> None:
    """Loss, gradients and new statistics of a step in the middle of a run; to be taken in float64."""
    config = config_of("replicated")
    alone = Trainer(config, mesh=make_mesh(jax.local_devices()))
    state = alone.init()
    for seed in range(2):
        state, _ = alone.train_step(state, batch_of(config, seed))
    share = config.data.batch_size // jax.process_count()
    first = jax.process_index() * share
    batch = jax.tree.map(lambda x: x[first : first + share], batch_of(config, 10))
    loss, gradients, statistics = OneStep(config, jax.device_count())(on_host(state), batch)
    if not first:
        workdir.mkdir()
        leaves = jax.tree.leaves((loss, gradients, statistics))
        np.savez(workdir / "step.npz", *leaves)


def refuse() -> None:
    raise InputError("no such records")


if __name__ == "__main__":
    records, workdir = Path(sys.argv[1]), Path(sys.argv[2])
    steps, save_every, num_members = map(int, sys.argv[3:6])
    if len(sys.argv) > 6:
        start(Cluster(f"127.0.0.1:{sys.argv[6]}", 2, int(sys.argv[7])))
    write = MetricsLog.write

    def write_and_tell(log: MetricsLog, step: int, *more: dict[str, float]) -> None:
        write(log, step, *more)
        print(f"step {step}", flush=True)

    MetricsLog.write = write_and_tell
    if not steps:
        write_step(workdir)
        sys.exit()
    config = training_config(records, steps, save_every)
    if not num_members:
        try:
            first_process_alone(refuse)
        except InputError as error:
            sys.exit(str(error))
    try:
        if num_members == 1:
            train(config, workdir)
        else:
            gammas = [replace(config, objective=replace(config.objective, gamma=float(n))) for n in range(num_members)]
            train_together(gammas, [workdir / str(n) for n in range(num_members)])
    except Interrupted as stop:
        print(f"stopped {stop.step}", flush=True)
        sys.exit(stop.exit_code)
    print("done", flush=True)
