"""The train step: state, optimizer, and one compiled function from int16 audio to new weights.

Of one model, or of several that differ in their objective or optimizer and are trained together.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from clipsep_jax.config import Config, ObjectiveConfig
from clipsep_jax.mixing import apply_gain, drop_closest, likeness_weight, mix
from clipsep_jax.models.clipsep import CLIPSep, build_model
from clipsep_jax.objectives import build_objective
from clipsep_jax.structures import Batch, Loss, MaskLogits, Mixture
from clipsep_jax.training.devices import replicated, state_sharding
from clipsep_jax.training.optimizer import build_optimizer, learning_rate_schedule

T = TypeVar("T")

Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
        step: how many steps are finished, int32 of shape [].
        skipped: how many of them changed nothing, because the loss or a gradient was not finite.
        params, batch_stats: parameters and running statistics, as `nnx.State`.
        optimizer: the optimizer's state.
    """

    step: PyTree
    skipped: PyTree
    params: PyTree
    batch_stats: PyTree
    optimizer: PyTree


def _compiler_options(config: Config) -> dict[str, str] | None:
    """XLA on CPU takes rematerialised values for common subexpressions, and stores them after all, if it may."""
    if config.train.remat and jax.default_backend() == "cpu":
        return {"xla_disable_hlo_passes": "cse_barrier_expander"}
    return None


def _options_of_init() -> dict[str, int] | None:
    """It runs once, in less time than XLA on CPU takes to optimize it; the values are the same."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None


class Trainer:
    """The pure functions of a run, built once from its config: initial state, train step, validation step."""

    def __init__(
        self,
        *configs: Config,
        encode: Callable[[Any, Array], Array] | None = None,
        mesh: Mesh | AbstractMesh | None = None,
    ):
        """Build the functions.

        Args:
            configs: one; several for `JointTrainer`.
            encode: `(encoder_state, frames) -> embeddings`, needed with `query.source = "frames"`.
            mesh: of the devices that the state is spread over (`config.train.sharding`); without it, one device.
        """
        self.configs = configs
        self.config = config = configs[0]
        self.encode = encode
        self.mesh = mesh
        self.optimizer = build_optimizer(config.optimizer)
        self.graphdef = nnx.graphdef(nnx.eval_shape(lambda: self._build_model(0)))
        whole = None if mesh is None else replicated(mesh)
        out = None if mesh is None else self.sharding(mesh)
        self.init = jax.jit(self._init, out_shardings=out, compiler_options=_options_of_init())
        self.train_step = jax.jit(
            self._train_step,
            donate_argnums=0,
            out_shardings=None if out is None else (out, whole),
            compiler_options=_compiler_options(config),
        )
        self.validation_step = jax.jit(self._validation_step, out_shardings=whole)

    def sharding(self, mesh: Mesh | AbstractMesh) -> PyTree:
        """Where each array of the state lies."""
        return state_sharding(jax.eval_shape(self._init), mesh, self.config.train.sharding)

    def _build_model(self, seed: int) -> CLIPSep:
        dtype = jnp.bfloat16 if self.config.train.precision == "bfloat16" else None
        return build_model(self.config.model, nnx.Rngs(seed), dtype=dtype, remat=self.config.train.remat)

    def _init(self) -> TrainState:
        """The state before the first step, from the config's seed."""
        model = self._build_model(self.config.train.seed)
        params, batch_stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
        return TrainState(jnp.array(0), jnp.array(0), params, batch_stats, self.optimizer.init(params))

    def mix(self, batch: Batch, step: Array, encoder: Any, training: bool) -> tuple[Mixture, Array | None]:
        """The mixture and the queries of a batch."""
        similar_pairs = self.config.data.similar_pairs if training else "keep"
        active = step >= self.config.data.similar_pairs_from_step
        if similar_pairs == "drop":
            batch = drop_closest(batch, self.config.data.batch_size, active)
        sources = apply_gain(jnp.asarray(batch.sources), jnp.asarray(batch.gain))
        mixture = mix(sources, self.config.spectrogram, self.config.mixing)
        if similar_pairs == "downweight":
            likeness = likeness_weight(jnp.asarray(batch.query), active)
            mixture = replace(mixture, weight=mixture.weight * likeness[:, None, None])
        return mixture, self._query(batch, encoder)

    def _query(self, batch: Batch, encoder: Any) -> Array | None:
        if batch.frames is None:
            return None if batch.query is None else jnp.asarray(batch.query)
        assert self.encode is not None
        b, n, r = batch.frames.shape[:3]
        embeddings = self.encode(encoder, jnp.asarray(batch.frames).reshape(b * n * r, *batch.frames.shape[3:]))
        return jax.lax.stop_gradient(embeddings.reshape(b, n, r, -1).mean(axis=2))

    def logits(
        self, params: PyTree, batch_stats: PyTree, mixture: Mixture, query: Array | None, training: bool
    ) -> tuple[MaskLogits, PyTree]:
        """The mask logits of a mixture, and the new batch statistics."""
        model = nnx.merge(self.graphdef, params, batch_stats, copy=True)
        model.train() if training else model.eval()
        return model(jnp.log(mixture.magnitude), query), nnx.state(model, nnx.BatchStat)

    def gradients(
        self, state: TrainState, mixture: Mixture, query: Array | None, member: Array | int = 0
    ) -> tuple[PyTree, Loss, PyTree]:
        """Gradients by the parameters, the loss, and the new batch statistics."""

        def logits_of(params: PyTree) -> tuple[MaskLogits, PyTree]:
            return self.logits(params, state.batch_stats, mixture, query, training=True)

        # In two parts, so that where members differ in the objective only the chosen one is differentiated.
        logits, pull_back, batch_stats = jax.vjp(logits_of, state.params, has_aux=True)
        slope, loss = self._choose("objective", _build_slope, member)(logits, mixture, state.step)
        (gradients,) = pull_back(slope)
        return gradients, loss, batch_stats

    def _train_step(self, state: TrainState, batch: Batch, encoder: Any = None) -> tuple[TrainState, Metrics]:
        mixture, query = self.mix(batch, state.step, encoder, training=True)
        return self._member_step(state, 0, mixture, query)

    def _validation_step(self, state: TrainState, batch: Batch, encoder: Any = None) -> Float[Array, "*M B"]:
        """Loss of each example, with the running statistics."""
        mixture, query = self.mix(batch, state.step, encoder, training=False)
        return self._member_validation(state, 0, mixture, query)

    def _member_step(
        self, state: TrainState, member: Array | int, mixture: Mixture, query: Array | None
    ) -> tuple[TrainState, Metrics]:
        gradients, loss, batch_stats = self.gradients(state, mixture, query, member)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss.value) & jnp.isfinite(norm)
        update = self._choose("optimizer", lambda config: build_optimizer(config).update, member)
        updates, optimizer = update(gradients, state.optimizer, state.params)
        new = (optax.apply_updates(state.params, updates), batch_stats, optimizer)
        old = (state.params, state.batch_stats, state.optimizer)
        kept = jax.tree.map(lambda changed, unchanged: jnp.where(finite, changed, unchanged), new, old)
        skipped = state.skipped + jnp.where(finite, 0, 1)
        metrics = {
            "loss": loss.value,
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(self._choose("optimizer", learning_rate_schedule, member)(state.step)),
            "skipped_steps": skipped,
            **loss.metrics,
        }
        return TrainState(state.step + 1, skipped, *kept), metrics

    def _member_validation(
        self, state: TrainState, member: Array | int, mixture: Mixture, query: Array | None
    ) -> Float[Array, "B"]:
        logits, _ = self.logits(state.params, state.batch_stats, mixture, query, training=False)
        return self._choose("objective", build_objective, member)(logits, mixture, state.step).per_example

    def _choose(self, group: str, build: Callable[[Any], Callable], member: Array | int) -> Callable:
        """What `build` makes of a member's options of a group; which member, only the running program knows."""
        options = [getattr(config, group) for config in self.configs]
        kinds = list(dict.fromkeys(options))
        if len(kinds) == 1:
            return build(kinds[0])
        number = jnp.array([kinds.index(option) for option in options])[member]
        return partial(jax.lax.switch, number, [build(kind) for kind in kinds])

    def member(self, tree: T, member: int) -> T:
        """A member's part of what a step gives; of one model alone, all of it."""
        return tree

    def stack(self, *states: TrainState) -> TrainState:
        """The state of all members from that of each."""
        return states[0]


def _build_slope(config: ObjectiveConfig) -> Callable[[MaskLogits, Mixture, Array], tuple[MaskLogits, Loss]]:
    """The gradient of the objective by the logits, with the loss itself."""
    objective = build_objective(config)

    def value(logits: MaskLogits, mixture: Mixture, step: Array) -> tuple[Float[Array, ""], Loss]:
        loss = objective(logits, mixture, step)
        return loss.value, loss

    return jax.grad(value, has_aux=True)


class JointTrainer(Trainer):
    """The same for several members: models that start alike and differ in their objective or optimizer alone.

    Every array of the state, of the metrics and of the validation loss has a leading member axis. Input, STFT and
    embeddings are shared. On a device the members take turns (`jax.lax.map`, measured faster than `jax.vmap`, and each
    may have a formula of its own); where the mesh has an axis `model`, they are spread over it.
    """

    def __init__(
        self,
        *configs: Config,
        encode: Callable[[Any, Array], Array] | None = None,
        mesh: Mesh | AbstractMesh | None = None,
    ):
        """Build the functions.

        Args:
            configs: of the members; they may differ in `objective` (but for its name) and `optimizer` alone.
            encode, mesh: as for `Trainer`; the size of the axis `model` divides the number of members.
        """
        super().__init__(*configs, encode=encode, mesh=mesh)
        self._take = jax.jit(lambda tree, member: jax.tree.map(lambda x: x[member], tree))
        out = None if mesh is None else self.sharding(mesh)
        self._stack = jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.stack(x), *states), out_shardings=out)

    def sharding(self, mesh: Mesh | AbstractMesh) -> PyTree:
        """Where each array of the state lies: members along `model`, each as a single model."""
        one = state_sharding(jax.eval_shape(super()._init), mesh, self.config.train.sharding)
        return jax.tree.map(lambda place: NamedSharding(mesh, PartitionSpec("model", *place.spec)), one)

    def _init(self) -> TrainState:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(self.configs), *x.shape)), super()._init())

    def _train_step(self, state: TrainState, batch: Batch, encoder: Any = None) -> tuple[TrainState, Metrics]:
        mixture, query = self.mix(batch, state.step[0], encoder, training=True)
        return self._each(self._member_step, state, mixture, query)

    def _validation_step(self, state: TrainState, batch: Batch, encoder: Any = None) -> Float[Array, "*M B"]:
        mixture, query = self.mix(batch, state.step[0], encoder, training=False)
        return self._each(self._member_validation, state, mixture, query)

    def _each(self, function: Callable, state: TrainState, *shared: Any) -> Any:
        """`function(state of a member, member, *shared)` of all members, stacked."""

        def in_turn(state: TrainState, members: Array, *shared: Any) -> Any:
            return jax.lax.map(lambda one: function(*one, *shared), (state, members))

        members = jnp.arange(len(self.configs))
        if self.mesh is None:
            return in_turn(state, members, *shared)
        spread, whole = PartitionSpec("model"), PartitionSpec()
        return jax.shard_map(
            in_turn,
            mesh=self.mesh,
            in_specs=(spread, spread, *(whole,) * len(shared)),
            out_specs=spread,
            axis_names={"model"},
            check_vma=False,
        )(state, members, *shared)

    def member(self, tree: T, member: int) -> T:
        """A member's part of what a step gives."""
        return self._take(tree, member)

    def stack(self, *states: TrainState) -> TrainState:
        """The state of all members from that of each."""
        return self._stack(*states)
