"""The training loop: batches in, checkpoints, curves and a model directory out; resumed by running it again.

A workdir holds

    metrics.jsonl   a line each `log_every` steps
    tensorboard/    the same as curves
    checkpoints/    Orbax: the latest steps and the best one
    best/           the best model so far, as a model directory

Several members (see `JointTrainer`) are trained together by the same loop; each has a workdir of its own.
"""

import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import SupportsFloat, TypeVar

import jax
import optax
from flax import nnx
from jaxtyping import Array
from tqdm import tqdm

from clipsep_jax.checkpoint import Checkpoints
from clipsep_jax.config import Config
from clipsep_jax.distributed import put_ahead
from clipsep_jax.goodput import Goodput
from clipsep_jax.metrics_log import MetricsLog
from clipsep_jax.model_dir import BEST_FOLDER, WEIGHTS_FILE, start_model_dir, write_weights
from clipsep_jax.run import Run
from clipsep_jax.stopping import EXIT_INTERRUPTED, Interrupted, StopRequest, Watchdog, stop_on_signal
from clipsep_jax.structures import InputError, InputWarning
from clipsep_jax.train_step import TrainState

T = TypeVar("T")


def train(config: Config, workdir: Path, *, allow_changes: Sequence[str] = ()) -> Path:
    """Trains to `config.train.steps`, going on from the latest whole checkpoint of `workdir` if there is one.

    Args:
        allow_changes: options that may differ from those of the checkpoint, such as "train.steps".

    Returns:
        The model directory of the best model (without a validation split: the latest).

    Raises:
        InputError: the config, the records or the workdir cannot be used, or too many steps were not finite.
        Interrupted: a signal asked to stop; the state is saved.
    """
    train_together([config], [workdir], allow_changes=allow_changes)
    return workdir / BEST_FOLDER


def train_together(configs: Sequence[Config], workdirs: Sequence[Path], *, allow_changes: Sequence[str] = ()) -> None:
    """Trains several members at once, each in a workdir as `train` leaves it; arguments and errors as there.

    Where the loss of a member is no number any more, the others go on without it.
    """
    run = Run(*configs)
    with ExitStack() as stack:
        members = [stack.enter_context(Member(run, number, workdir)) for number, workdir in enumerate(workdirs)]
        stop = stack.enter_context(stop_on_signal())
        state, start = run.trainer.init(), _latest_common_step(members)
        if start:
            state = run.trainer.stack(*[member.restore(start, state, allow_changes) for member in members])
        for member in members:
            member.begin(start, state)
        if not run.validation_batches:
            tqdm.write(
                f"{run.records.folder} has no split {run.config.data.validation_split!r} with enough clips for a "
                "mixture: the latest model is kept as the best."
            )
        _loop(run, state, start, members, stop)


def _latest_common_step(members: Sequence["Member"]) -> int:
    """The last step of which all members have a whole checkpoint, or 0; what some have after it is forgotten."""
    steps = [member.checkpoints.latest_whole_step() or 0 for member in members]
    while len(set(steps)) > 1:
        common = min(steps)
        steps = [
            step if step == common else member.checkpoints.latest_whole_step(common) or 0
            for step, member in zip(steps, members, strict=True)
        ]
    for member in members:
        member.checkpoints.forget_after(steps[0])
    return steps[0]


class Member:
    """A model of a run and its workdir: checkpoints, curves and the best model."""

    def __init__(self, run: Run, number: int, workdir: Path):
        self.run, self.number, self.workdir = run, number, workdir
        self.config = run.configs[number]
        self.given_up = False
        self.scalars: dict[str, float] = {}  # those read last that are finite
        self._open = ExitStack()
        self.checkpoints = self._open.enter_context(Checkpoints(workdir / "checkpoints", self.config))

    def __enter__(self) -> "Member":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def own(self, tree: T) -> T:
        """This member's part of what the trainer gives."""
        return self.run.trainer.member(tree, self.number)

    def tell(self, sentence: str) -> None:
        """Warn, with the member's name where there are several."""
        name = f"{self.workdir.name}: " if len(self.run.configs) > 1 else ""
        warnings.warn(name + sentence, InputWarning, stacklevel=2)

    def restore(self, step: int, like: TrainState, allow_changes: Sequence[str]) -> TrainState:
        """This member's stored state of a step; `like` is the state of all."""
        self.checkpoints.check_config(step, allow_changes)
        return self.checkpoints.restore(step, self.own(like))

    def begin(self, start: int, state: TrainState) -> None:
        """Start the model directory and the curves of a run that goes on from `start`."""
        first = jax.process_index() == 0
        if first:
            labels = self.run.records.labels if self.config.query.kind == "label" else ()
            table = Path(self.config.query.table) if self.config.query.table else None
            start_model_dir(self.workdir / BEST_FOLDER, self.config, self.run.encoder, labels, table)
        self.best_loss = self.checkpoints.best_loss
        self.skipped = SkippedSteps(self, float(self.own(state.skipped)))
        self.log = self._open.enter_context(MetricsLog(self.workdir, start, writing=first))

    def read(
        self,
        step: int,
        metrics: dict[str, SupportsFloat],
        validation: dict[str, float],
        counts: Sequence[SupportsFloat],
    ) -> None:
        """Fetch the scalars of a step.

        Args:
            counts: the metric "skipped_steps" of each step since the last call.

        Raises:
            InputError: the losses are no numbers any more.
        """
        scalars = {name: float(value) for name, value in self.own(metrics).items()} | validation
        self.scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        if not self.given_up:
            self.skipped.look(step, scalars["skipped_steps"], counts)
            _check_finite(validation, step)

    def check_parameters(self, step: int, state: TrainState) -> None:
        """Raises InputError where the parameters are no numbers any more."""
        _check_finite({"norm of the parameters": float(optax.tree.norm(self.own(state).params))}, step)

    def save(self, step: int, state: TrainState) -> None:
        """Store a checkpoint, and the model where it is the best so far."""
        state, loss = self.own(state), self.scalars.get(f"validation_loss_{self.run.chosen_by}")
        if self.given_up:
            loss = None
        elif loss is not None and loss < self.best_loss:
            self.best_loss = loss
            self._write_best(state, step, loss)
        elif not self.run.validation_batches or not (self.workdir / BEST_FOLDER / WEIGHTS_FILE).is_file():
            self._write_best(state, step, None)
        self.checkpoints.save(step, state, loss)

    def _write_best(self, state: TrainState, step: int, validation_loss: float | None) -> None:
        params, batch_stats = self.run.gather((state.params, state.batch_stats))  # every process takes part
        if jax.process_index() == 0:
            model = nnx.merge(self.run.trainer.graphdef, params, batch_stats, copy=True)
            write_weights(self.workdir / BEST_FOLDER, model, step, validation_loss)


@dataclass
class SkippedSteps:
    """Notices steps that changed nothing, because their loss or a gradient was not finite.

    The step itself counts them; the counts are fetched only where the last one says that there were new ones.
    """

    member: Member
    counted: float
    in_row: int = 0

    def look(self, step: int, total: float, counts: Sequence[SupportsFloat]) -> None:
        """Warn of those up to `step`, naming the clips.

        Args:
            total: the last count.
            counts: after each step since the last look, of all members.

        Raises:
            InputError: there were too many in a row.
        """
        if total == self.counted:
            self.in_row = 0
            return
        before = [self.counted, *(float(self.member.own(count)) for count in counts)]
        self.counted = total
        for number, (old, new) in enumerate(pairwise(before)):
            self.in_row = self.in_row + 1 if new > old else 0
            if self.in_row:
                self._tell(step - len(counts) + 1 + number)

    def _tell(self, step: int) -> None:
        run = self.member.run
        clips = ", ".join(run.train_batches.ids(step - 1))
        if self.in_row >= run.config.train.max_skipped_in_row:
            raise InputError(
                f"The loss or a gradient was not finite in {self.in_row} steps in a row, up to step {step} "
                f"(of {clips}); lower --config.optimizer.learning_rate or look at those clips, and run again."
            )
        self.member.tell(f"Step {step} changed nothing: its loss or a gradient was not finite. It held {clips}.")


@contextmanager
def _giving_up(member: Member, members: Sequence[Member]) -> Iterator[None]:
    """Goes on without a member that cannot, as long as there are others."""
    try:
        yield
    except InputError as error:
        if all(other.given_up for other in members if other is not member):
            raise
        member.given_up = True
        member.tell(f"{error} It stays as it is, and the others go on.")


@dataclass
class Speed:
    """Steps a second between two looks."""

    step: int
    time: float = field(default_factory=time.perf_counter)

    def since_last(self, step: int) -> float:
        now = time.perf_counter()
        steps, seconds = step - self.step, now - self.time
        self.step, self.time = step, now
        return steps / max(seconds, 1e-9)


def _loop(run: Run, state: TrainState, start: int, members: Sequence[Member], stop: StopRequest) -> None:
    config, steps = run.config, run.config.train.steps
    first, on_screen = jax.process_index() == 0, sys.stderr.isatty()
    progress = tqdm(total=steps, initial=start, unit="step", desc="train", disable=not (first and on_screen))
    goodput, speed = Goodput(), Speed(start)
    batches = put_ahead(run.train_batches.iterate(start), run.mesh)
    counts: list[Array] = []  # of skipped steps, not fetched yet
    with progress, Watchdog(config.train.hang_seconds) as watchdog:
        for step in range(start + 1, steps + 1):
            with goodput.during("input"):
                batch = next(batches)
            state, metrics = run.trainer.train_step(state, batch, run.encoder_state)
            counts.append(metrics["skipped_steps"])
            progress.update()
            watchdog.step()
            last = stop.stops_at(step) or step == steps
            validating = step % config.train.validate_every == 0 or step == steps
            with goodput.during("validation"):
                validation = run.validate(state) if validating else [{} for _ in members]
            logging = any(validation) or step % config.train.log_every == 0 or step == steps
            saving = last or any(validation) or step % config.checkpoint.save_every == 0
            if logging or saving:
                for member, losses in zip(members, validation, strict=True):
                    with _giving_up(member, members):
                        member.read(step, metrics, losses, counts)
                counts.clear()
                shown = _shown(members)
                progress.set_postfix(shown)
            if logging:
                for member in members:
                    member.log.write(step, member.scalars)
                if first and not on_screen:  # a file takes no bar
                    told = " ".join(f"{name} {value}" for name, value in shown.items())
                    print(
                        f"step {step}/{steps} {told} {speed.since_last(step):.2f} steps/s", file=sys.stderr, flush=True
                    )
                with goodput.during("checkpoint"):
                    for member in members:
                        member.checkpoints.seal()
            if saving:
                with goodput.during("checkpoint"):
                    _save(step, state, members)
            if last and step < steps:
                raise Interrupted(step, stop.exit_code or EXIT_INTERRUPTED)
    if first and start < steps:
        tqdm.write(str(goodput), file=sys.stderr)


def _save(step: int, state: TrainState, members: Sequence[Member]) -> None:
    """Save all members; none begins before the last save of all is finished, so that they always share a step."""
    for member in members:
        member.checkpoints.wait()
    for member in members:
        if not member.given_up:
            with _giving_up(member, members):
                member.check_parameters(step, state)
        member.save(step, state)


def _shown(members: Sequence[Member]) -> dict[str, str]:
    """The losses for the console: of several members, the least and the largest."""
    names = {name: None for member in members for name in member.scalars if name == "loss" or "validation" in name}
    values = {name: [member.scalars[name] for member in members if name in member.scalars] for name in names}
    return {
        name: f"{least:.4f}" if (least := min(of)) == (most := max(of)) else f"{least:.4f}..{most:.4f}"
        for name, of in values.items()
    }


def _check_finite(scalars: dict[str, float], step: int) -> None:
    for name, value in scalars.items():
        if not math.isfinite(value):
            raise InputError(
                f"The {name} of step {step} is {value}; lower --config.optimizer.learning_rate and run again, "
                "which starts from the checkpoint before."
            )
