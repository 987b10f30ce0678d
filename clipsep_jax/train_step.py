"""The train step: state, optimizer, and one compiled function from int16 audio to new weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, PyTree

from clipsep_jax.config import Config, OptimizerConfig
from clipsep_jax.distributed import replicated, state_sharding
from clipsep_jax.mixing import apply_gain, drop_closest, likeness_weight, mix
from clipsep_jax.models.clipsep import CLIPSep, build_model
from clipsep_jax.objectives import build_objective
from clipsep_jax.structures import Batch, Loss

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


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
    """(step + 1) / warmup_steps, then linear to final_factor at decay_end_step, then constant; times learning_rate."""
    warmup = max(1, config.warmup_steps)
    rate = config.learning_rate
    rise = optax.linear_schedule(rate / warmup, rate, max(1, warmup - 1))
    fall = optax.linear_schedule(rate, rate * config.final_factor, max(1, config.decay_end_step - warmup))
    return optax.join_schedules([rise, fall], [warmup])


def build_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam behind a clip of the gradients' global norm."""
    return optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(learning_rate_schedule(config)))


def _compiler_options(config: Config) -> dict[str, str] | None:
    """XLA on CPU takes rematerialised values for common subexpressions, and stores them after all, if it may."""
    if config.train.remat and jax.default_backend() == "cpu":
        return {"xla_disable_hlo_passes": "cse_barrier_expander"}
    return None


class Trainer:
    """The pure functions of a run, built once from its config: initial state, train step, validation step."""

    def __init__(
        self,
        config: Config,
        encode: Callable[[Any, Array], Array] | None = None,
        mesh: Mesh | AbstractMesh | None = None,
    ):
        """Build the functions.

        Args:
            encode: `(encoder_state, frames) -> embeddings`, needed with `query.source = "frames"`.
            mesh: of the devices that the state is spread over by `config.sharding`; without one, it lies on one device.
        """
        self.config = config
        self.optimizer = build_optimizer(config.optimizer)
        self.schedule = learning_rate_schedule(config.optimizer)
        self.objective = build_objective(config.objective)
        self.encode = encode
        self.graphdef = nnx.graphdef(nnx.eval_shape(lambda: self._build_model(0)))
        whole = None if mesh is None else replicated(mesh)
        out = None if mesh is None else state_sharding(jax.eval_shape(self._init), mesh, config.sharding)
        self.init = jax.jit(self._init, out_shardings=out)
        self.train_step = jax.jit(
            self._train_step,
            donate_argnums=0,
            out_shardings=None if out is None else (out, whole),
            compiler_options=_compiler_options(config),
        )
        self.validation_step = jax.jit(self._validation_step, out_shardings=whole)

    def _build_model(self, seed: int) -> CLIPSep:
        dtype = jnp.bfloat16 if self.config.train.precision == "bfloat16" else None
        return build_model(self.config.model, nnx.Rngs(seed), dtype=dtype, remat=self.config.train.remat)

    def _init(self) -> TrainState:
        """The state before the first step, from the config's seed."""
        model = self._build_model(self.config.train.seed)
        params, batch_stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
        return TrainState(jnp.array(0), jnp.array(0), params, batch_stats, self.optimizer.init(params))

    def loss(
        self, params: PyTree, batch_stats: PyTree, step: Array, batch: Batch, encoder: Any, training: bool
    ) -> tuple[Float[Array, ""], tuple[Loss, PyTree]]:
        """The loss of a batch, with its parts and the new batch statistics."""
        model = nnx.merge(self.graphdef, params, batch_stats, copy=True)
        model.train() if training else model.eval()
        choosing = self.config.data.drop_closest if training else 0
        active = step >= self.config.data.drop_closest_from_step
        if choosing > 0:
            batch = drop_closest(batch, self.config.data.batch_size, active)
        sources = apply_gain(jnp.asarray(batch.sources), jnp.asarray(batch.gain))
        mixture = mix(sources, self.config.spectrogram, self.config.mixing)
        if choosing < 0:
            likeness = likeness_weight(jnp.asarray(batch.query), active)
            mixture = replace(mixture, weight=mixture.weight * likeness[:, None, None])
        logits = model(jnp.log(mixture.magnitude), self._query(batch, encoder))
        loss = self.objective(logits, mixture, step)
        return loss.value, (loss, nnx.state(model, nnx.BatchStat))

    def _query(self, batch: Batch, encoder: Any) -> Array | None:
        if batch.frames is None:
            return None if batch.query is None else jnp.asarray(batch.query)
        assert self.encode is not None
        b, n, r = batch.frames.shape[:3]
        embeddings = self.encode(encoder, jnp.asarray(batch.frames).reshape(b * n * r, *batch.frames.shape[3:]))
        return jax.lax.stop_gradient(embeddings.reshape(b, n, r, -1).mean(axis=2))

    def _train_step(self, state: TrainState, batch: Batch, encoder: Any = None) -> tuple[TrainState, Metrics]:
        gradients, (loss, batch_stats) = jax.grad(self.loss, has_aux=True)(
            state.params, state.batch_stats, state.step, batch, encoder, training=True
        )
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss.value) & jnp.isfinite(norm)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.params)
        new = (optax.apply_updates(state.params, updates), batch_stats, optimizer)
        old = (state.params, state.batch_stats, state.optimizer)
        kept = jax.tree.map(lambda changed, unchanged: jnp.where(finite, changed, unchanged), new, old)
        skipped = state.skipped + jnp.where(finite, 0, 1)
        metrics = {
            "loss": loss.value,
            "gradient_norm": norm,
            "learning_rate": self.schedule(state.step),
            "skipped_steps": skipped,
            **loss.metrics,
        }
        return TrainState(state.step + 1, skipped, *kept), metrics

    def _validation_step(self, state: TrainState, batch: Batch, encoder: Any = None) -> Float[Array, " B"]:
        """Loss of each example, with the running statistics."""
        _, (loss, _) = self.loss(state.params, state.batch_stats, state.step, batch, encoder, training=False)
        return loss.per_example
