"""Models of a sweep that are trained together: their joint step, their run, and the workdir of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from clipsep_jax.config import Config
from clipsep_jax.errors import InputError
from clipsep_jax.files import read_json, write_json
from clipsep_jax.objectives import Objective, build_objective
from clipsep_jax.structures import Batch
from clipsep_jax.training.devices import broadcast_from_first, make_mesh, state_sharding
from clipsep_jax.training.initial import Init, check_init
from clipsep_jax.training.loop import run_training
from clipsep_jax.training.optimizer import Optimizer, build_optimizer
from clipsep_jax.training.previews import Previews
from clipsep_jax.training.setup import Run
from clipsep_jax.training.step import Metrics, Recipe, Trainer, TrainState
from clipsep_jax.training.timing import StepTrace
from clipsep_jax.training.workdir import Workdir, latest_step, no_whole_checkpoint

T = TypeVar("T")

GIVEN_UP_NAME = "given_up.json"  # in the workdir of a member that was given up
_FORMULA = ("name", "criterion", "regularizer")  # options of the objective that are words: parts of a program


@dataclass(frozen=True)
class GivenUp:
    """When a member was given up, and why."""

    step: int
    reason: str


class JointRecipe(NamedTuple):
    """The recipes of all members; every array has a leading member axis.

    Attributes:
        formula: the number of each member's objective in `objectives`.
        objectives: one for each formula, with the numbers of all members.
        optimizer: with the numbers of all members.
    """

    formula: Int[np.ndarray, " M"] | Array
    objectives: tuple[Objective, ...]
    optimizer: Optimizer


class JointTrainer(Trainer):
    """`Trainer` for several members: models that start alike and differ only in their objective or optimizer.

    Every array of the state, of the metrics and of the validation loss has a leading member axis. Input, STFT and
    embeddings are shared. On a device the members take turns (`jax.lax.map`, measured faster than `jax.vmap`, and each
    may have a formula of its own); where the mesh has an axis `model`, they are spread over it.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        *,
        encode: Callable[[Any, Array], Array] | None = None,
        mesh: Mesh | AbstractMesh | None = None,
    ):
        """Build the functions.

        Args:
            configs: of the members; they may differ only in `objective` (except its name) and `optimizer`.
            encode, mesh: as for `Trainer`; the size of the axis `model` divides the number of members.
        """
        self.configs = configs
        super().__init__(configs[0], encode=encode, mesh=mesh)
        self._take = jax.jit(lambda tree, member: jax.tree.map(lambda x: x[member], tree))
        out = None if mesh is None else self.sharding(mesh)
        self._stack = jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.stack(x), *states), out_shardings=out)

    def sharding(self, mesh: Mesh | AbstractMesh) -> PyTree:
        """Where each array of the state lies: members along `model`, each as a single model."""
        one = state_sharding(jax.eval_shape(super()._init), mesh, self.config.train.sharding)
        return jax.tree.map(lambda place: NamedSharding(mesh, PartitionSpec("model", *place.spec)), one)

    def part_of(self, tree: T, member: int) -> T:
        """A member's part of what a step gives."""
        return self._take(tree, member)

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """The state of all members from that of each."""
        return self._stack(*states)

    def _build_recipe(self) -> JointRecipe:
        formulas = [{word: getattr(config.objective, word) for word in _FORMULA} for config in self.configs]
        distinct = [words for number, words in enumerate(formulas) if words not in formulas[:number]]
        objectives = [
            _stacked([build_objective(replace(config.objective, **words)) for config in self.configs])
            for words in distinct
        ]
        return JointRecipe(
            np.array([distinct.index(formula) for formula in formulas]),
            tuple(objectives),
            _stacked([build_optimizer(config.optimizer) for config in self.configs]),
        )

    def _init(self) -> TrainState:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(self.configs), *x.shape)), super()._init())

    def _train_step(
        self, state: TrainState, batch: Batch, recipe: JointRecipe, encoder: Any
    ) -> tuple[TrainState, Metrics]:
        shared = self.mix(batch, state.step[0], encoder, training=True)
        return self._each(self.update, state, recipe, *shared)

    def _validation_step(
        self, state: TrainState, batch: Batch, recipe: JointRecipe, encoder: Any
    ) -> Float[Array, "*M B"]:
        shared = self.mix(batch, state.step[0], encoder, training=False)
        return self._each(self.losses, state, recipe, *shared)

    def _each(self, function: Callable, state: TrainState, recipe: JointRecipe, *shared: Any) -> Any:
        """`function(state, *shared, recipe)` of each member, stacked."""

        def in_turn(state: TrainState, recipe: JointRecipe, *shared: Any) -> Any:
            return jax.lax.map(lambda member: self._of_member(function, member, shared), (state, recipe))

        if self.mesh is None:
            return in_turn(state, recipe, *shared)
        spread, whole = PartitionSpec("model"), PartitionSpec()
        return jax.shard_map(
            in_turn,
            mesh=self.mesh,
            in_specs=(spread, spread, *(whole,) * len(shared)),
            out_specs=spread,
            axis_names={"model"},
            check_vma=False,
        )(state, recipe, *shared)

    def _of_member(self, function: Callable, member: tuple[TrainState, JointRecipe], shared: tuple) -> Any:
        state, (formula, objectives, optimizer) = member
        recipes = [Recipe(objective, optimizer) for objective in objectives]
        return jax.lax.switch(formula, [lambda r=r: function(state, *shared, r) for r in recipes])


def _stacked(trees: Sequence[T]) -> T:
    """Trees of numbers as one tree of arrays; on the host, so that all processes of a run may give them to the step."""
    return jax.tree.map(lambda *leaves: np.array(leaves), *trees)


class JointRun(Run):
    """The parts of a run of several members."""

    trainer: JointTrainer

    def __init__(self, configs: Sequence[Config]):
        """Build the parts; the configs may differ as `JointTrainer` says."""
        self.configs = configs
        super().__init__(configs[0])

    def _build_mesh(self) -> Mesh:
        return make_mesh(num_models=len(self.configs))

    def _build_trainer(self, encode: Callable[[Any, Array], Array] | None) -> JointTrainer:
        for config in self.configs:
            self.kind.check(config)
        self.configs = [self.kind.fit(config, self.records.labels) for config in self.configs]
        return JointTrainer(self.configs, encode=encode, mesh=self.mesh)


class Member(Workdir):
    """The workdir of one member, which may be given up while the others continue."""

    def __init__(self, run: JointRun, folder: Path, number: int, others: Sequence["Member"]):
        """Open the workdir; `others` is filled with the other members before training starts."""
        super().__init__(run, folder, run.configs[number], number)
        self.others = others
        self.given_up = False

    def warn(self, sentence: str) -> None:
        """Warn once for all hosts, with the member's name."""
        super().warn(f"{self.folder.name}: {sentence}")

    def start(self, step: int, skipped: SupportsFloat) -> None:
        """Start the files of a run that resumes from a step."""
        super().start(step, skipped)
        self.given_up = bool(broadcast_from_first(int(self._was_given_up(step))))

    def _was_given_up(self, start: int) -> bool:
        """Whether the first process finds a note of it up to the step to resume from; a later note is removed."""
        path = self.folder / GIVEN_UP_NAME
        if jax.process_index() or not path.is_file():
            return False
        if read_json(path, "is damaged; delete it, or use another --workdir.", GivenUp).step <= start:
            return True
        path.unlink()
        return False

    def give_up(self, reason: str, step: int) -> None:
        """Continue without this member; giving up the last one ends the run.

        Raises:
            DivergedError: there is no other member to continue with.
        """
        if self.given_up:
            return
        if all(other.given_up for other in self.others if other is not self):
            super().give_up(reason, step)
        self.given_up = True
        if jax.process_index() == 0:
            write_json(self.folder / GIVEN_UP_NAME, asdict(GivenUp(step, reason)), indent=None)
        self.warn(f"{reason}. It is given up: its best model stays as it is, and the others continue.")

    def _check(self, step: int, losses: dict[str, float], total: float, counts: Sequence[Any]) -> None:
        if not self.given_up:
            super()._check(step, losses, total, counts)

    def notice_skipped(self, step: int, in_row: int) -> None:
        """Warn of a step that changed nothing, or give up; silent for a member that was given up."""
        if not self.given_up:
            super().notice_skipped(step, in_row)

    def _keep(self, step: int, state: TrainState) -> None:
        if self.given_up:
            self.checkpoints.save(step, state, None)
        else:
            super()._keep(step, state)


class Members:
    """The workdirs of all members, for the loop to use like that of one run."""

    def __init__(self, run: JointRun, folders: Sequence[Path]):
        self._run = run
        self.all: list[Member] = []
        with ExitStack() as opened:
            for number, folder in enumerate(folders):
                member = Member(run, folder, number, self.all)
                opened.enter_context(member)
                self.all.append(member)
            self._open = opened.pop_all()

    def __enter__(self) -> "Members":
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def _parts(self, tree: T) -> Iterator[T]:
        return (self._run.trainer.part_of(tree, number) for number in range(len(self.all)))

    def step_to_go_on_from(self) -> int:
        """The last step of which all members have a whole checkpoint; 0 if none has one, or some only the first.

        Raises:
            InputError: there are checkpoints, but no common step, which no interruption causes.
        """
        return latest_step(self._latest_common_step)

    def _latest_common_step(self) -> int:
        stored = {member.folder.name: member.checkpoints.steps for member in self.all}
        common = set.intersection(*map(set, stored.values()))
        if common:
            return max(common)
        saved = {step for steps in stored.values() for step in steps}
        text = ", ".join(f"{name} has {steps or 'none'}" for name, steps in stored.items())
        damaged = [member.checkpoints.damaged_folder for member in self.all]
        if any(folder.is_dir() for folder in damaged):
            raise no_whole_checkpoint(text, damaged)
        if len(saved) > 1:
            raise InputError(
                f"The members share no checkpoint to resume from ({text}); nothing was deleted. Restore what is "
                "missing, or use another --workdir."
            )
        if saved:
            self.all[0].warn(f"The first save was interrupted ({text}); all members start again.")
        return 0

    def restore(self, step: int, like: TrainState, allow_changes: Sequence[str]) -> TrainState:
        """The stored states of a step."""
        parts = zip(self.all, self._parts(like), strict=True)
        return self._run.trainer.stack([member.restore(step, part, allow_changes) for member, part in parts])

    def start(self, step: int, skipped: Array) -> None:
        """Start the files of a run that resumes from a step."""
        for member, part in zip(self.all, self._parts(skipped), strict=True):
            member.start(step, part)

    def show(self, previews: Previews, step: int, state: TrainState) -> None:
        """Show what each model makes of a few mixtures."""
        for number, member in enumerate(self.all):
            variables = self._run.trainer.part_of((state.params, state.batch_stats), number)
            previews.show(member.log.board, step, variables)

    def read(self, step: int, metrics: Mapping[str, Any], losses: dict[str, np.ndarray], counts: Sequence[Any]) -> None:
        """Fetch the scalars of a step; see `Workdir.read`."""
        for number, member in enumerate(self.all):
            own = {name: loss[number] for name, loss in losses.items()}
            member.read(
                step, self._run.trainer.part_of(metrics, number), own, [Slice(count, number) for count in counts]
            )

    def shown(self) -> dict[str, str]:
        """The losses for the console: the least and the largest of all members."""
        values: dict[str, list[float]] = {}
        for member in self.all:
            for name, value in member.losses().items():
                values.setdefault(name, []).append(value)
        return {name: _range(of) for name, of in values.items()}

    def write(self, step: int, board_only: dict[str, float]) -> None:
        """Append what was read to the curves."""
        for member in self.all:
            member.write(step, board_only)

    def seal(self) -> None:
        """Write the checksums of checkpoints that are on disk."""
        for member in self.all:
            member.seal()

    def wait(self) -> None:
        """Wait for the saves under way."""
        for member in self.all:
            member.wait()

    def save(self, step: int, state: TrainState) -> None:
        """Save all members; none begins before the last save of all is finished, so that they always share a step."""
        self.wait()
        for member, part in zip(self.all, self._parts(state), strict=True):
            member.save(step, part)


class Slice:
    """A member's value in an array on the device, fetched on first use."""

    def __init__(self, array: Array, number: int):
        self._array, self._number = array, number

    def __float__(self) -> float:
        return float(np.asarray(self._array)[self._number])


def _range(values: Sequence[float]) -> str:
    least, most = min(values), max(values)
    return f"{least:.4f}" if least == most else f"{least:.4f}..{most:.4f}"


def train_together(
    configs: Sequence[Config],
    workdirs: Sequence[Path],
    *,
    init: Init | None = None,
    allow_changes: Sequence[str] = (),
    trace: StepTrace | None = None,
) -> None:
    """Trains several members at once, each in a workdir as `train` leaves it; arguments and errors as for `train`.

    Where the loss of a member becomes NaN or infinite, the others go on without it; its given_up.json says so.
    """
    if len(configs) > 1 and configs[0].checkpoint.keep_latest < 2:
        raise InputError("config.checkpoint.keep_latest is 1; members need 2, so that they always share a step.")
    run = JointRun(configs)
    check_init(run, init, workdirs)
    with Members(run, workdirs) as members:
        run_training(run, members, init, allow_changes, trace)
