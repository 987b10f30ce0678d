"""The workdir of a run: its checkpoints, its curves and its best model, written and resumed."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, SupportsFloat

import jax
import optax
from flax import nnx

from clipsep_jax.config import Config
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.model_dir import BEST_FOLDER, read_progress, start_model_dir, write_weights
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.tensors import WEIGHTS_FILE
from clipsep_jax.training.checkpoints import Checkpoints
from clipsep_jax.training.curves import MetricsLog
from clipsep_jax.training.devices import broadcast_from_first, first_process_alone
from clipsep_jax.training.previews import Previews
from clipsep_jax.training.setup import Run
from clipsep_jax.training.step import TrainState


class DivergedError(InputError):
    """The losses or parameters of a run have become NaN or infinite."""


class Workdir:
    """What the loop reads from a step and writes to disk."""

    def __init__(self, run: Run, folder: Path, config: Config | None = None, number: int = 0):
        """Open the checkpoints.

        Args:
            config: of the model, if not that of the run.
            number: unique among the workdirs that a process has open.
        """
        self.run, self.folder, self.config = run, folder, config or run.config
        self.scalars: dict[str, float] = {}  # those read last that are finite
        self._open = ExitStack()
        self.checkpoints = self._open.enter_context(Checkpoints(folder / "checkpoints", self.config, number))

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def warn(self, sentence: str) -> None:
        """Warn once for all hosts."""
        if jax.process_index() == 0:
            warnings.warn(sentence, InputWarning, stacklevel=2)

    def step_to_go_on_from(self) -> int:
        """The step of the latest whole checkpoint; 0 if there never was one.

        Raises:
            InputError: all checkpoints are damaged.
        """
        return latest_step(self._latest_step)

    def _latest_step(self) -> int:
        if self.checkpoints.steps:
            return max(self.checkpoints.steps)
        if self.checkpoints.damaged_folder.is_dir():
            raise no_whole_checkpoint(f"{self.folder.name} has none", [self.checkpoints.damaged_folder])
        return 0

    def restore(self, step: int, like: TrainState, allow_changes: Sequence[str]) -> TrainState:
        """The stored state of a step, with the structure, types and shardings of `like`.

        Raises:
            InputError: the checkpoint is of another config, apart from the options in `allow_changes`.
        """
        self.checkpoints.check_config(step, allow_changes)
        return self.checkpoints.restore(step, like)

    def start(self, step: int, skipped: SupportsFloat) -> None:
        """Start the model directory and the curves of a run that resumes from a step.

        Args:
            skipped: how many steps changed nothing before.
        """
        self.checkpoints.forget_after(step)
        first = jax.process_index() == 0
        if first:
            labels = self.run.kind.labels_of(self.run.records)
            table = EmbeddingTable.load(Path(self.config.query.table)) if self.config.query.table else None
            best = self.folder / BEST_FOLDER
            start_model_dir(best, self.config, self.run.encoder, labels, table, self.run.centre)
        best_loss = min(self.checkpoints.best_loss, self._loss_of_best()) if step else math.inf
        self.best_loss = broadcast_from_first(best_loss)
        self.skipped = SkippedSteps(self.notice_skipped, float(skipped))
        self.log = self._open.enter_context(MetricsLog(self.folder, step, writing=first))
        # One process decides whether all of them gather a model: views of a shared disk may differ.
        self.has_best = bool(broadcast_from_first(int((self.folder / BEST_FOLDER / WEIGHTS_FILE).is_file())))

    def _loss_of_best(self) -> float:
        """The loss of the best model, which may be better than those of the checkpoints that are left."""
        path = self.folder / BEST_FOLDER / WEIGHTS_FILE
        try:
            loss = read_progress(path).validation_loss if path.is_file() else None
        except InputError as error:
            self.warn(f"{error} The next best model takes its place.")
            return math.inf
        return math.inf if loss is None else loss

    def show(self, previews: Previews, step: int, state: TrainState) -> None:
        """Show in TensorBoard what the model makes of a few mixtures."""
        previews.show(self.log.board, step, (state.params, state.batch_stats))

    def read(
        self,
        step: int,
        metrics: Mapping[str, SupportsFloat],
        losses: Mapping[str, SupportsFloat],
        counts: Sequence[SupportsFloat],
    ) -> None:
        """Fetch the scalars of a step.

        Args:
            losses: of the validation, if there was one.
            counts: the metric "skipped_steps" of each step since the last call.

        Raises:
            DivergedError: the losses are not finite, or those of too many steps in a row.
        """
        validation = {name: float(loss) for name, loss in losses.items()}
        scalars = {name: float(value) for name, value in metrics.items()} | validation
        self.scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        self._check(step, validation, scalars["skipped_steps"], counts)

    def _check(self, step: int, losses: dict[str, float], total: float, counts: Sequence[SupportsFloat]) -> None:
        self.skipped.look(step, total, counts)
        self._check_finite(losses, step)

    def _check_finite(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                self.give_up(f"The {name} of step {step} is {value}", step)

    def give_up(self, reason: str, step: int) -> None:
        """End the run.

        Raises:
            DivergedError: always.
        """
        raise DivergedError(
            f"{reason}; lower --config.optimizer.learning_rate or look at the clips, and run again, which resumes "
            "from the checkpoint before."
        )

    def notice_skipped(self, step: int, in_row: int) -> None:
        """Warn of a step that changed nothing, naming its clips.

        Args:
            in_row: how many such steps there were in a row, with this one.

        Raises:
            DivergedError: these are too many.
        """
        clips = ", ".join(self.run.train_batches.ids(step - 1))
        if in_row >= self.config.train.max_skipped_in_row:
            reason = f"The loss or a gradient was not finite in {in_row} steps in a row, up to step {step}"
            self.give_up(f"{reason} (of {clips})", step)
        else:
            self.warn(f"Step {step} changed nothing: its loss or a gradient was not finite. It held {clips}.")

    def losses(self) -> dict[str, float]:
        """The losses that were read last, without those that are not finite."""
        return {name: value for name, value in self.scalars.items() if name == "loss" or "validation" in name}

    def shown(self) -> dict[str, str]:
        """The losses for the console."""
        return {name: f"{value:.4f}" for name, value in self.losses().items()}

    def write(self, step: int, board_only: dict[str, float]) -> None:
        """Append what was read to the curves, and `board_only` to those of TensorBoard."""
        self.log.write(step, self.scalars, board_only)

    def seal(self) -> None:
        """Write the checksums of checkpoints that are on disk."""
        self.checkpoints.seal()

    def wait(self) -> None:
        """Wait for the save under way."""
        self.checkpoints.wait()

    def save(self, step: int, state: TrainState) -> None:
        """Store a checkpoint, and the model if it is the best so far.

        Raises:
            DivergedError: the parameters are not finite.
        """
        self.wait()
        self._check_finite({"norm of the parameters": float(optax.tree.norm(state.params))}, step)
        self._keep(step, state)

    def _keep(self, step: int, state: TrainState) -> None:
        loss = self.scalars.get(f"validation_loss_{self.run.chosen_by}")
        if loss is not None and loss < self.best_loss:
            self.best_loss = loss
            self._write_best(state, step, loss)
        elif not self.run.validation_batches or not self.has_best:
            self._write_best(state, step, None)
        self.checkpoints.save(step, state, loss)

    def _write_best(self, state: TrainState, step: int, validation_loss: float | None) -> None:
        params, batch_stats = self.run.gather((state.params, state.batch_stats))  # every process takes part
        if jax.process_index() == 0:
            model = nnx.merge(self.run.trainer.graphdef, params, batch_stats, copy=True)
            write_weights(self.folder / BEST_FOLDER, model, step, validation_loss)
        self.has_best = True


def latest_step(find: Callable[[], int]) -> int:
    """What the first process finds, in all of them; their views of a shared disk may differ."""
    found: list[int] = []
    first_process_alone(lambda: found.append(find()))
    return broadcast_from_first(found[0] if found else 0)


def no_whole_checkpoint(told: str, damaged: Sequence[Path]) -> InputError:
    """The refusal to start again if checkpoints are damaged; `told` lists those that are left."""
    folders = ", ".join(str(folder) for folder in damaged if folder.is_dir())
    return InputError(
        f"There is no whole checkpoint to resume from ({told}); nothing was deleted. Restore what is missing from a "
        f"backup (damaged ones lie in {folders}), or use another --workdir."
    )


@dataclass
class SkippedSteps:
    """Notices steps that changed nothing, because their loss or a gradient was not finite.

    The step itself counts them; the counts are fetched only if the last one shows new ones.

    Attributes:
        notice: is called with each such step and how many there were in a row.
        counted: how many there were.
    """

    notice: Callable[[int, int], None]
    counted: float
    in_row: int = 0

    def look(self, step: int, total: float, counts: Sequence[SupportsFloat]) -> None:
        """Notice those up to `step`.

        Args:
            total: the last count.
            counts: after each step since the last look.
        """
        if total == self.counted:
            self.in_row = 0
            return
        before = [self.counted, *map(float, counts)]
        self.counted = total
        for number, (old, new) in enumerate(pairwise(before)):
            self.in_row = self.in_row + 1 if new > old else 0
            if self.in_row:
                self.notice(step - len(counts) + 1 + number, self.in_row)
