"""The training loop: batches in, checkpoints, curves and a model directory out; resumed by running it again.

A workdir holds

    metrics.jsonl   a line for each logged step (`log_every`)
    tensorboard/    the same as curves, and masks and sounds of a few mixtures
    checkpoints/    Orbax: the latest steps and the best one
    best/           the best model so far, as a model directory
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array

from clipsep_jax.config import Config
from clipsep_jax.errors import EXIT_INTERRUPTED
from clipsep_jax.model_dir import BEST_FOLDER
from clipsep_jax.terminal import say
from clipsep_jax.training.devices import put_ahead
from clipsep_jax.training.flat import Flat
from clipsep_jax.training.initial import Init, check_init, read_initial_weights
from clipsep_jax.training.previews import Previews
from clipsep_jax.training.progress import Curves, Progress
from clipsep_jax.training.setup import Run
from clipsep_jax.training.step import TrainState
from clipsep_jax.training.stopping import Interrupted, StopRequest, Watchdog, stop_on_signal
from clipsep_jax.training.timing import Goodput, StepTrace
from clipsep_jax.training.workdir import Workdir


def train(
    config: Config,
    workdir: Path,
    *,
    init: Init | None = None,
    allow_changes: Sequence[str] = (),
    trace: StepTrace | None = None,
) -> Path:
    """Trains to `config.train.steps`, resuming from the latest whole checkpoint of `workdir` if there is one.

    Args:
        init: the model to start from; a run that is resumed goes on from its own, and needs it no more.
        allow_changes: options that may differ from those of the checkpoint, such as "train.steps".
        trace: records what the steps of a window take.

    Returns:
        The model directory of the best model (without a validation split: the latest).

    Raises:
        InputError: the config, the records or the workdir cannot be used, or too many steps were not finite.
        Interrupted: a signal asked to stop; the state is saved.
    """
    run = Run(config)
    check_init(run, init, [workdir])
    with Workdir(run, workdir) as opened:
        run_training(run, opened, init, allow_changes, trace)
    return workdir / BEST_FOLDER


@runtime_checkable
class Output(Curves, Protocol):
    """What the loop needs of a `Workdir`, whose docstrings say what these do."""

    def step_to_go_on_from(self) -> int: ...
    def restore(self, step: int, like: TrainState, allow_changes: Sequence[str]) -> TrainState: ...
    def start(self, step: int, skipped: Array) -> None: ...
    def show(self, previews: Previews, step: int, state: TrainState) -> None: ...
    def save(self, step: int, state: TrainState) -> None: ...


def run_training(
    run: Run,
    workdir: Output,
    init: Init | None,
    allow_changes: Sequence[str],
    trace: StepTrace | None,
) -> None:
    """Trains with the parts of a run; see `train`."""
    with stop_on_signal() as stop:
        state, start = run.trainer.init(), workdir.step_to_go_on_from()
        if start:
            state = workdir.restore(start, state, allow_changes)
        elif init is not None:
            initial = read_initial_weights(run, init)
            state = initial.put_into(state)
            say(initial.sentence)
        workdir.start(start, state.skipped)
        if not run.validation_batches:
            say(
                f"{run.records.folder} has no split {run.config.data.validation_split!r} with enough clips for a "
                "mixture: the latest model is kept as the best."
            )
        with trace or StepTrace() as recorder:
            _loop(run, state, start, workdir, stop, recorder)


def _loop(run: Run, state: TrainState, start: int, workdir: Output, stop: StopRequest, trace: StepTrace) -> None:
    train, trainer, previews = run.config.train, run.trainer, Previews(run)
    flat, encoder = trainer.flat(state), None if run.encoder_state is None else Flat.of(run.encoder_state)
    with (
        closing(put_ahead(run.train_batches.iterate(start), run.mesh)) as batches,
        Goodput() as goodput,
        Progress(run, workdir, start, goodput) as progress,
        Watchdog(train.hang_seconds) as watchdog,
    ):
        for step in range(start + 1, train.steps + 1):
            batch = goodput.next_of(batches)
            if step == start + 1:
                progress.begin(flat, batch, encoder)
            flat, metrics = trace.run(step, trainer.flat_step, flat, batch, encoder)
            progress.took(step, metrics)
            watchdog.step()
            last = stop.stops_at(step) or step == train.steps
            losses: dict[str, np.ndarray] = {}
            if validating := step % train.validate_every == 0 or step == train.steps:
                with goodput.during("validation"):
                    losses = run.validate(flat.tree)
                    workdir.show(previews, step, flat.tree)
            logging = bool(losses) or step % train.log_every == 0 or step == train.steps
            if last or losses or step % run.config.checkpoint.save_every == 0:
                progress.tell(step, metrics, losses, write=logging)
                with goodput.during("checkpoint"):
                    workdir.save(step, flat.tree)
            elif logging:
                progress.log(step, metrics)
            if validating or last:
                progress.sum_up(step, last)
            if last and step < train.steps:
                raise Interrupted(step, stop.exit_code or EXIT_INTERRUPTED)
