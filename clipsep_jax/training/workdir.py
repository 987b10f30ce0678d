"""One model of a run and its workdir; a run has one, or several that are trained together."""

import json
import math
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar

import jax
import optax
from flax import nnx

from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.files import atomic_write
from clipsep_jax.model_dir import BEST_FOLDER, WEIGHTS_FILE, read_progress, start_model_dir, write_weights
from clipsep_jax.training.checkpoints import Checkpoints
from clipsep_jax.training.curves import MetricsLog
from clipsep_jax.training.devices import told_by_first
from clipsep_jax.training.setup import Run
from clipsep_jax.training.step import TrainState

T = TypeVar("T")

GIVEN_UP_NAME = "given_up.json"  # in the workdir of a member that the others went on without


class DivergedError(InputError):
    """The losses or parameters of the last member that was left are no numbers any more."""


class Member:
    """A model of a run and its workdir: checkpoints, curves and the best model."""

    def __init__(self, run: Run, number: int, workdir: Path):
        self.run, self.number, self.workdir = run, number, workdir
        self.config = run.configs[number]
        self.given_up = False
        self.scalars: dict[str, float] = {}  # those read last that are finite
        self._open = ExitStack()
        self.checkpoints = self._open.enter_context(Checkpoints(workdir / "checkpoints", self.config, number))

    def __enter__(self) -> "Member":
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def own(self, tree: T) -> T:
        """This member's part of what the trainer gives."""
        return self.run.trainer.member(tree, self.number)

    def tell(self, sentence: str) -> None:
        """Warn once for all hosts, with the member's name where there are several."""
        name = f"{self.workdir.name}: " if len(self.run.configs) > 1 else ""
        if jax.process_index() == 0:
            warnings.warn(name + sentence, InputWarning, stacklevel=2)

    def restore(self, step: int, like: TrainState, allow_changes: Sequence[str]) -> TrainState:
        """This member's stored state of a step; `like` is the state of all."""
        self.checkpoints.check_config(step, allow_changes)
        return self.checkpoints.restore(step, self.own(like))

    def begin(self, start: int, state: TrainState, others: Sequence["Member"]) -> None:
        """Start the model directory and the curves of a run that goes on from `start` with `others`."""
        self.others, first = others, jax.process_index() == 0
        if first:
            labels = self.run.kind.labels_of(self.run.records)
            table = Path(self.config.query.table) if self.config.query.table else None
            start_model_dir(self.workdir / BEST_FOLDER, self.config, self.run.encoder, labels, table)
        self.best_loss = told_by_first(min(self.checkpoints.best_loss, self._loss_of_best()) if start else math.inf)
        self.skipped = SkippedSteps(self, float(self.own(state.skipped)))
        self.log = self._open.enter_context(MetricsLog(self.workdir, start, writing=first))
        if others:
            self.given_up = bool(told_by_first(int(self._was_given_up(start))))
        # What decides whether all processes gather a model is asked of one of them: views of a shared disk may differ.
        self.has_best = bool(told_by_first(int((self.workdir / BEST_FOLDER / WEIGHTS_FILE).is_file())))

    def _loss_of_best(self) -> float:
        """The loss of the best model, which may be better than those of the checkpoints that are left."""
        path = self.workdir / BEST_FOLDER / WEIGHTS_FILE
        try:
            loss = read_progress(path).get("validation_loss") if path.is_file() else None
        except InputError as error:
            self.tell(f"{error} The next best model takes its place.")
            return math.inf
        return math.inf if loss is None else float(loss)

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
            DivergedError: the losses are no numbers any more, and there is no other member to go on with.
        """
        scalars = {name: float(value) for name, value in self.own(metrics).items()} | validation
        self.scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        if not self.given_up:
            self.skipped.look(step, scalars["skipped_steps"], counts)
            self._check_finite(validation, step)

    def _check_finite(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            if not math.isfinite(value) and not self.given_up:
                self.fail(f"The {name} of step {step} is {value}", step)

    def fail(self, reason: str, step: int) -> None:
        """Give the member up; the one that is left last ends the run.

        Raises:
            DivergedError: there is no other member to go on with.
        """
        if all(other.given_up for other in self.others):
            raise DivergedError(
                f"{reason}; lower --config.optimizer.learning_rate or look at the clips, and run again, which starts "
                "from the checkpoint before."
            )
        self.given_up = True
        if jax.process_index() == 0:
            with atomic_write(self.workdir / GIVEN_UP_NAME) as file:
                file.write(json.dumps({"step": step, "reason": reason}).encode() + b"\n")
        self.tell(f"{reason}. It is given up: its best model stays as it is, and the others go on.")

    def _was_given_up(self, start: int) -> bool:
        """Whether the first process finds that it was, by the step that the run goes on from; later news is removed."""
        path = self.workdir / GIVEN_UP_NAME
        if jax.process_index() or not path.is_file():
            return False
        if json.loads(path.read_text("utf-8"))["step"] <= start:
            return True
        path.unlink()
        return False

    def save(self, step: int, state: TrainState) -> None:
        """Store a checkpoint, and the model where it is the best so far.

        Raises:
            DivergedError: the parameters are no numbers any more, and there is no other member to go on with.
        """
        state, loss = self.own(state), self.scalars.get(f"validation_loss_{self.run.chosen_by}")
        if not self.given_up:
            self._check_finite({"norm of the parameters": float(optax.tree.norm(state.params))}, step)
        if self.given_up:
            loss = None
        elif loss is not None and loss < self.best_loss:
            self.best_loss = loss
            self._write_best(state, step, loss)
        elif not self.run.validation_batches or not self.has_best:
            self._write_best(state, step, None)
        self.checkpoints.save(step, state, loss)

    def _write_best(self, state: TrainState, step: int, validation_loss: float | None) -> None:
        params, batch_stats = self.run.gather((state.params, state.batch_stats))  # every process takes part
        if jax.process_index() == 0:
            model = nnx.merge(self.run.trainer.graphdef, params, batch_stats, copy=True)
            write_weights(self.workdir / BEST_FOLDER, model, step, validation_loss)
        self.has_best = True


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
            DivergedError: there were too many in a row, and there is no other member to go on with.
        """
        if total == self.counted:
            self.in_row = 0
            return
        before = [self.counted, *(float(self.member.own(count)) for count in counts)]
        self.counted = total
        for number, (old, new) in enumerate(pairwise(before)):
            self.in_row = self.in_row + 1 if new > old else 0
            if self.in_row and not self.member.given_up:
                self._tell(step - len(counts) + 1 + number)

    def _tell(self, step: int) -> None:
        run = self.member.run
        clips = ", ".join(run.train_batches.ids(step - 1))
        if self.in_row >= run.config.train.max_skipped_in_row:
            reason = f"The loss or a gradient was not finite in {self.in_row} steps in a row, up to step {step}"
            self.member.fail(f"{reason} (of {clips})", step)
            return
        self.member.tell(f"Step {step} changed nothing: its loss or a gradient was not finite. It held {clips}.")
