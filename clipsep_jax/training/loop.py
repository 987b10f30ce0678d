"""The training loop: batches in, checkpoints, curves and a model directory out; resumed by running it again.

A workdir holds

    metrics.jsonl   a line for each logged step (`log_every`)
    tensorboard/    the same as curves, and masks and sounds of a few mixtures
    checkpoints/    Orbax: the latest steps and the best one
    best/           the best model so far, as a model directory
"""

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from clipsep_jax.config import Config
from clipsep_jax.errors import EXIT_INTERRUPTED
from clipsep_jax.model_dir import BEST_FOLDER
from clipsep_jax.terminal import say
from clipsep_jax.training.devices import put_ahead
from clipsep_jax.training.previews import Previews
from clipsep_jax.training.setup import Run
from clipsep_jax.training.step import Metrics, TrainState
from clipsep_jax.training.stopping import Interrupted, StopRequest, Watchdog, stop_on_signal
from clipsep_jax.training.timing import Goodput, StepTrace
from clipsep_jax.training.workdir import Workdir


def train(config: Config, workdir: Path, *, allow_changes: Sequence[str] = (), trace: StepTrace | None = None) -> Path:
    """Trains to `config.train.steps`, resuming from the latest whole checkpoint of `workdir` if there is one.

    Args:
        allow_changes: options that may differ from those of the checkpoint, such as "train.steps".
        trace: records what the steps of a window take.

    Returns:
        The model directory of the best model (without a validation split: the latest).

    Raises:
        InputError: the config, the records or the workdir cannot be used, or too many steps were not finite.
        Interrupted: a signal asked to stop; the state is saved.
    """
    run = Run(config)
    with Workdir(run, workdir) as opened:
        run_training(run, opened, allow_changes, trace)
    return workdir / BEST_FOLDER


@runtime_checkable
class Output(Protocol):
    """What the loop needs of a `Workdir`, whose docstrings say what these do."""

    def step_to_go_on_from(self) -> int: ...
    def restore(self, step: int, like: TrainState, allow_changes: Sequence[str]) -> TrainState: ...
    def start(self, step: int, skipped: Array) -> None: ...
    def show(self, previews: Previews, step: int, state: TrainState) -> None: ...
    def read(self, step: int, metrics: Metrics, losses: dict[str, np.ndarray], counts: Sequence[Array]) -> None: ...
    def shown(self) -> dict[str, str]: ...
    def write(self, step: int, board_only: dict[str, float]) -> None: ...
    def seal(self) -> None: ...
    def save(self, step: int, state: TrainState) -> None: ...


def run_training(run: Run, workdir: Output, allow_changes: Sequence[str], trace: StepTrace | None) -> None:
    """Trains with the parts of a run; see `train`."""
    with stop_on_signal() as stop:
        state, start = run.trainer.init(), workdir.step_to_go_on_from()
        if start:
            state = workdir.restore(start, state, allow_changes)
        workdir.start(start, state.skipped)
        if not run.validation_batches:
            say(
                f"{run.records.folder} has no split {run.config.data.validation_split!r} with enough clips for a "
                "mixture: the latest model is kept as the best."
            )
        with trace or StepTrace() as recorder:
            _loop(run, state, start, workdir, stop, recorder)


@dataclass
class Speed:
    """Steps per second between two readings."""

    step: int
    time: float = field(default_factory=time.perf_counter)

    def since_last(self, step: int) -> float:
        now = time.perf_counter()
        steps, seconds = step - self.step, now - self.time
        self.step, self.time = step, now
        return steps / max(seconds, 1e-9)


def _progress(start: int, steps: int, shown: bool) -> tqdm:
    return tqdm(total=steps, initial=start, unit="step", desc="train", disable=not shown)


def _print_line(step: int, steps: int, shown: dict[str, str], steps_per_second: float) -> None:
    """What a progress bar shows on a screen, as a line for a file."""
    text = " ".join(f"{name} {value}" for name, value in shown.items())
    say(f"step {step}/{steps} {text} {steps_per_second:.2f} steps/s", error=True)


def _loop(run: Run, state: TrainState, start: int, workdir: Output, stop: StopRequest, trace: StepTrace) -> None:
    config, steps = run.config, run.config.train.steps
    first, on_screen = jax.process_index() == 0, sys.stderr.isatty()
    goodput, speed, previews = Goodput(), Speed(start), Previews(run)
    counts: list[Array] = []  # of skipped steps, not fetched yet
    with (
        closing(put_ahead(run.train_batches.iterate(start), run.mesh)) as batches,
        _progress(start, steps, first and on_screen) as progress,
        Watchdog(config.train.hang_seconds) as watchdog,
    ):
        for step in range(start + 1, steps + 1):
            with goodput.during("input"):
                batch = next(batches)
            state, metrics = trace.run(step, run.trainer.train_step, state, batch, run.encoder_state)
            counts.append(metrics["skipped_steps"])
            progress.update()
            watchdog.step()
            last = stop.stops_at(step) or step == steps
            validating = step % config.train.validate_every == 0 or step == steps
            with goodput.during("validation"):
                losses = run.validate(state) if validating else {}
                if validating:
                    workdir.show(previews, step, state)
            logging = bool(losses) or step % config.train.log_every == 0 or step == steps
            saving = last or bool(losses) or step % config.checkpoint.save_every == 0
            if logging or saving:
                workdir.read(step, metrics, losses, counts)
                counts.clear()
                progress.set_postfix(workdir.shown())
            if logging:
                steps_per_second = speed.since_last(step)
                workdir.write(step, {"steps_per_second": steps_per_second} | goodput.shares())
                if first and not on_screen:
                    _print_line(step, steps, workdir.shown(), steps_per_second)
                with goodput.during("checkpoint"):
                    workdir.seal()
            if saving:
                with goodput.during("checkpoint"):
                    workdir.save(step, state)
            if validating and first and (step == steps or not on_screen):
                say(str(goodput), error=True)
            if last and step < steps:
                raise Interrupted(step, stop.exit_code or EXIT_INTERRUPTED)
