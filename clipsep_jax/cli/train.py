"""`clipsep train`, and what `clipsep sweep-gamma` shares with it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipsep_jax.cli.options import positive
from clipsep_jax.errors import InputError
from clipsep_jax.terminal import say

DESCRIPTION = (
    "  clipsep train --config=toy_smoke --workdir=runs/smoke\n"
    "  clipsep train --config=clipsep_nit:vggsound --workdir=runs/nit --config.train.steps=100000\n"
    "  clipsep train --config=clipsep_nit:vggsound --workdir=runs/tuned --init models/nit --config.data.records=MINE"
)


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `clipsep train`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME[:DATASET]",
        help="a shipped config, such as clipsep_nit:vggsound, or your own FILE.py[:DATASET]",
    )
    parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--init",
        default="",
        metavar="MODEL",
        help="start from the weights of a model directory, a workdir or a hub id; a run that is resumed goes on from "
        "its own",
    )
    parser.add_argument(
        "--init-skip",
        action="append",
        default=[],
        metavar="PATTERN",
        help="with --init: tensors to draw anew, such as 'query_head.*'; repeatable",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="NAME",
        help="an option, such as train.steps, that may differ from the run to resume; repeatable",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of process 0, for runs of several processes outside SLURM, MPI and TPU pods",
    )
    parser.add_argument(
        "--num-processes", type=positive, metavar="N", help="with --coordinator: the number of processes, one per host"
    )
    parser.add_argument(
        "--process-id", type=int, metavar="I", help="with --coordinator: the number of this process, from 0"
    )
    parser.add_argument(
        "--profile-server", type=_port, metavar="PORT", help="let TensorBoard take profiles of this process at PORT"
    )
    parser.add_argument(
        "--profile-steps", type=_window, metavar="FIRST:LAST", help="record these steps into WORKDIR/tensorboard"
    )
    parser.epilog = "Any option of the config can be set: --config.train.steps=1000 --config.data.records=DIR"


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Trains one model; `overrides` are the options of the config."""
    from clipsep_jax.config_files import read_config

    config = read_config(options.config, overrides)
    get_ready(config, options)
    from clipsep_jax.evaluation.calibration import calibrate_if_possible
    from clipsep_jax.training import devices as distributed
    from clipsep_jax.training.loop import train

    best = train(config, options.workdir, **how_to_start(options), trace=step_trace(options))
    distributed.first_process_alone(lambda: calibrate_if_possible(best, Path(config.data.records)))
    say(f"The best model is in {best}; try `clipsep separate FILE --model {options.workdir} --query ... --out DIR`.")


def get_ready(config: Any, options: argparse.Namespace) -> None:
    """Connects to the other processes of the run, and makes the toy records if the config asks for them."""
    from clipsep_jax.training import devices as distributed

    distributed.start(_cluster(options))
    if options.profile_server:
        from clipsep_jax.training.timing import start_server

        start_server(options.profile_server)
    if config.toy.num_clips:
        from clipsep_jax.demo.toy.records import make_toy_records

        toy, place = config.toy, Path(config.data.records)
        distributed.first_process_alone(lambda: make_toy_records(place, toy.num_clips, toy.encoder_steps))


def how_to_start(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `train` that say what a run begins with.

    Raises:
        InputError: they contradict each other.
    """
    if options.init_skip and not options.init:
        raise InputError("--init-skip leaves tensors of a model out; name the model with --init.")
    from clipsep_jax.training.initial import Init

    init = Init(options.init, tuple(options.init_skip)) if options.init else None
    return {"init": init, "allow_changes": options.allow_change}


def step_trace(options: argparse.Namespace) -> Any:
    """Records the steps of --profile-steps; None without that option."""
    from clipsep_jax.training.timing import StepTrace

    if options.profile_steps is None:
        return None
    first, last = options.profile_steps
    return StepTrace(first, last, options.workdir / "tensorboard")


def _cluster(options: argparse.Namespace) -> Any:
    from clipsep_jax.training.devices import Cluster

    values = (options.coordinator, options.num_processes, options.process_id)
    if values == (None, None, None):
        return None
    if None in values or not 0 <= options.process_id < options.num_processes:
        raise InputError("--coordinator, --num-processes and --process-id go together; processes count from 0.")
    host, _, port = options.coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator {options.coordinator} is not HOST:PORT, such as node1:1234.")
    return Cluster(*values)


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 2**16:
        raise argparse.ArgumentTypeError(f"{text} is not a port")
    return number


def _window(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text} is not FIRST:LAST, two steps counted from 1")
    return int(first), int(last)
