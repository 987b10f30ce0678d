"""One process of a training run of two, or of one; see `test_processes.py`.

python -m tests.distributed.one_of_two RECORDS WORKDIR STEPS MEMBERS [PORT PROCESS_ID]

With several members they are trained together, each in a folder of WORKDIR; with none, the first process fails alone.
"""

import sys
from dataclasses import replace
from pathlib import Path

from clipsep_jax.config import Config
from clipsep_jax.distributed import Cluster, first_process_alone, start
from clipsep_jax.metrics_log import MetricsLog
from clipsep_jax.stopping import Interrupted
from clipsep_jax.structures import InputError
from clipsep_jax.train import train, train_together
from tests.small import small_config

SAVE_EVERY = 2


def training_config(records: Path, steps: int) -> Config:
    config = small_config(records, steps=steps, validate_every=steps)
    return replace(config, data=replace(config.data, batch_size=4))


def refuse() -> None:
    raise InputError("no such records")


if __name__ == "__main__":
    records, workdir, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    num_members = int(sys.argv[4])
    if len(sys.argv) > 5:
        start(Cluster(f"127.0.0.1:{sys.argv[5]}", 2, int(sys.argv[6])))
    write = MetricsLog.write

    def write_and_tell(log: MetricsLog, step: int, *more: dict[str, float]) -> None:
        write(log, step, *more)
        print(f"step {step}", flush=True)

    MetricsLog.write = write_and_tell
    config = training_config(records, steps)
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
