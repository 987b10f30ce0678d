"""The train step: state, objective, optimizer, and one compiled function from int16 audio to new weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, PyTree

from clipsep_jax.config import Config
from clipsep_jax.errors import InputError
from clipsep_jax.mixing import (
    add_negatives,
    add_noise,
    apply_gain,
    draw_sounding,
    drop_closest,
    likeness_weight,
    mix,
    mix_up,
    weigh_targets,
)
from clipsep_jax.models.clipsep import CLIPSep, build_model, stored_name
from clipsep_jax.models.layers import BatchNorm
from clipsep_jax.objectives import Objective, best_of_queries, build_objective
from clipsep_jax.spectrogram import log_warped_magnitude, stft
from clipsep_jax.structures import Batch, Loss, MaskLogits, Mixture
from clipsep_jax.tensors import fits, listed
from clipsep_jax.training.devices import put_numbers, replicated, state_sharding
from clipsep_jax.training.flat import Flat, Structure
from clipsep_jax.training.optimizer import Optimizer, build_optimizer

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


class Recipe(NamedTuple):
    """Objective and optimizer, as data of the compiled step, so that one program serves all values of their numbers."""

    objective: Objective
    optimizer: Optimizer


def build_recipe(config: Config) -> Recipe:
    """The objective and the optimizer of a config."""
    return Recipe(build_objective(config.objective), build_optimizer(config.optimizer))


def _compiler_options(config: Config) -> dict[str, str] | None:
    """XLA on CPU would merge what remat computes twice, and store it after all."""
    if config.train.remat and jax.default_backend() == "cpu":
        return {"xla_disable_hlo_passes": "cse_barrier_expander"}
    return None


def _options_of_init() -> dict[str, int] | None:
    """Compiled at -O1: init runs once, so optimising costs more than it saves; the values are the same."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None


class Trainer:
    """The pure functions of a run, built once from its config: initial state, train step, validation step.

    Attributes:
        recipe: the objective and the optimizer, which `train_step` and `validation_step` are given as data.
        graphdef: the structure of the model, which `nnx.merge` combines with the state into a model.
        shapes: of the model's tensors, by their names in files.
    """

    recipe: PyTree

    def __init__(
        self,
        config: Config,
        *,
        encode: Callable[[Any, Array], Array] | None = None,
        mesh: Mesh | AbstractMesh | None = None,
    ):
        """Build the functions.

        Args:
            encode: `(encoder_state, frames) -> embeddings`, needed with `query.source = "frames"`.
            mesh: of the devices that the state is spread over (`config.train.sharding`); without it, one device.
        """
        self.config = config
        self.encode = encode
        self.mesh = mesh
        self.recipe = self._build_recipe()
        if isinstance(mesh, Mesh):  # once, rather than with every step
            self.recipe = put_numbers(self.recipe, mesh)
        model = nnx.eval_shape(lambda: self.build_model(0))
        self.graphdef = nnx.graphdef(model)
        self.shapes = {stored_name(path): value.shape for path, value in nnx.to_flat_state(nnx.state(model))}
        self._frozen = tuple(filter(None, map(str.strip, config.train.frozen.split(","))))
        self._check_frozen()
        whole = None if mesh is None else replicated(mesh)
        out = None if mesh is None else self.sharding(mesh)
        self._structure = Structure(jax.eval_shape(self._init))
        self.init = jax.jit(self._init, out_shardings=out, compiler_options=_options_of_init())
        self.compiled_train_step = jax.jit(
            self._flat_train_step,
            donate_argnums=0,
            out_shardings=None if out is None else (self.flat(out), whole),
            compiler_options=_compiler_options(config),
        )
        self.compiled_validation_step = jax.jit(self._validation_step, out_shardings=whole)

    def train_step(self, state: TrainState, batch: Batch, encoder: Any = None) -> tuple[TrainState, Metrics]:
        """The state after a batch, and scalars to log. The given state is donated.

        Args:
            encoder: the state of the encoder, where batches hold pictures.
        """
        new, metrics = self.flat_step(self.flat(state), batch, None if encoder is None else Flat.of(encoder))
        return new.tree, metrics

    def flat(self, state: TrainState) -> Flat:
        """A state, or anything of its structure, for `flat_step`."""
        return Flat.of(state, self._structure)

    def flat_step(self, state: Flat, batch: Batch, encoder: Flat | None = None) -> tuple[Flat, Metrics]:
        """`train_step` without its work on the host."""
        return self.compiled_train_step(state, batch, self.recipe, encoder)

    def validation_step(self, state: TrainState, batch: Batch, encoder: Any = None) -> Float[Array, "*M B"]:
        """The loss of each example, with the running statistics."""
        return self.compiled_validation_step(state, batch, self.recipe, encoder)

    def _build_recipe(self) -> PyTree:
        return build_recipe(self.config)

    def sharding(self, mesh: Mesh | AbstractMesh) -> PyTree:
        """Where each array of the state lies."""
        return state_sharding(jax.eval_shape(self._init), mesh, self.config.train.sharding)

    def build_model(self, seed: int) -> CLIPSep:
        """The model as drawn from a seed."""
        dtype = jnp.bfloat16 if self.config.train.precision == "bfloat16" else None
        return build_model(self.config.model, nnx.Rngs(seed), dtype=dtype, remat=self.config.train.remat)

    def _init(self) -> TrainState:
        """The state before the first step, from the config's seed."""
        model = self.build_model(self.config.train.seed)
        params, batch_stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
        return TrainState(
            jnp.array(0), jnp.array(0), params, batch_stats, build_optimizer(self.config.optimizer).init(params)
        )

    @jax.named_scope("mixture")
    def mix(self, batch: Batch, step: Array, encoder: Any, training: bool) -> tuple[Mixture, Array | None]:
        """The mixture and the queries of a batch."""
        similar_pairs = self.config.data.similar_pairs if training else "keep"
        active = step >= self.config.data.similar_pairs_from_step
        if similar_pairs == "drop":
            batch = drop_closest(batch, self.config.data.batch_size, active)
        key = jax.random.fold_in(jax.random.key(self.config.train.seed), step) if training else None
        of_sounding, of_queries = (None, None) if key is None else jax.random.split(key)
        gain, sounds = self.gain(batch, of_sounding)
        sources = apply_gain(jnp.asarray(batch.sources), gain)
        mixture = mix(sources, self.config.spectrogram, self.config.mixing)
        if sounds is not None:
            weight = weigh_targets(sounds, self.config.mixing.absent_weight)
            mixture = replace(mixture, target_weight=weight, sounds=sounds)
        if similar_pairs == "downweight":
            likeness = likeness_weight(jnp.asarray(batch.query), active)
            mixture = replace(mixture, weight=mixture.weight * likeness[:, None, None])
        query = self._query(batch, encoder)
        return mixture, query if of_queries is None or query is None else self._for_training(query, of_queries)

    def _for_training(self, query: Array, key: Array) -> Array:
        """Queries mixed up and with noise, as the config says."""
        of_weights, of_noise, of_negatives = jax.random.split(key, 3)
        if self.config.query.combine == "mix_up":
            query = mix_up(query, of_weights)
        if self.config.query.noise:
            query = add_noise(query, of_noise, self.config.query.noise)
        return add_negatives(query, of_negatives) if self.config.model.negative_query else query

    def gain(self, batch: Batch, key: Array | None) -> tuple[Array, Array | None]:
        """The gain of each source, and whether it sounds; None where all do."""
        gain, fewest = jnp.asarray(batch.gain), self.config.fewest_sounding
        if fewest == gain.shape[1]:
            return gain, None
        sounds = draw_sounding(key, (gain.shape[0], gain.shape[1]), fewest, self.config.most_sounding)
        return jnp.where(sounds, gain, 0), sounds

    def _query(self, batch: Batch, encoder: Any) -> Array | None:
        if batch.examples is not None:
            examples = apply_gain(jnp.asarray(batch.examples), jnp.ones_like(jnp.asarray(batch.gain)))
            magnitude = jnp.abs(stft(examples, self.config.spectrogram))
            return log_warped_magnitude(magnitude, self.config.spectrogram)
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
        self._still_norms(model)
        if query is None or self.config.query.combine != "compete" or query.ndim < 4:
            return model(jnp.log(mixture.magnitude), query), nnx.state(model, nnx.BatchStat)
        b, n, v, size = query.shape
        logits = model(jnp.log(mixture.magnitude), query.reshape(b, n * v, size))
        every = logits.query.reshape(b, n, v, *logits.query.shape[2:])
        return replace(logits, query=best_of_queries(every, mixture)), nnx.state(model, nnx.BatchStat)

    def gradients(
        self, state: TrainState, mixture: Mixture, query: Array | None, objective: Objective
    ) -> tuple[PyTree, Loss, PyTree]:
        """Gradients by the parameters, the loss, and the new batch statistics."""

        def loss_of(params: PyTree) -> tuple[Float[Array, ""], tuple[Loss, PyTree]]:
            logits, batch_stats = self.logits(params, state.batch_stats, mixture, query, training=True)
            with jax.named_scope("loss"):
                loss = objective(logits, mixture, state.step)
            return loss.value, (loss, batch_stats)

        gradients, (loss, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
        return self._without_frozen(gradients), loss, batch_stats

    def _check_frozen(self) -> None:
        for pattern in self._frozen:
            if not any(fits(name, (pattern,)) for name in self.shapes):
                raise InputError(
                    f"config.train.frozen has {pattern!r}, which names no tensor of the model; it has "
                    f"{listed(list(self.shapes))}."
                )

    def _without_frozen(self, tree: PyTree) -> PyTree:
        """A tree like the parameters, with zeros for those that are frozen."""
        if not self._frozen:
            return tree
        flat = [
            (path, jax.tree.map(jnp.zeros_like, variable) if fits(stored_name(path), self._frozen) else variable)
            for path, variable in nnx.to_flat_state(tree)
        ]
        return nnx.from_flat_state(flat)

    def _still_norms(self, model: CLIPSep) -> None:
        """BatchNorms whose running statistics are frozen normalise by them in training too."""
        for path, module in nnx.iter_modules(model) if self._frozen else ():
            if isinstance(module, BatchNorm) and fits(stored_name((*path, "mean")), self._frozen):
                module.eval()

    def update(
        self, state: TrainState, mixture: Mixture, query: Array | None, recipe: Recipe
    ) -> tuple[TrainState, Metrics]:
        """The state after a mixture, unchanged except for its counts if the loss or a gradient is not finite."""
        gradients, loss, batch_stats = self.gradients(state, mixture, query, recipe.objective)
        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(gradients)
            finite = jnp.isfinite(loss.value) & jnp.isfinite(norm)
            updates, optimizer = recipe.optimizer.update(gradients, state.optimizer, state.params)
            updates = self._without_frozen(updates)  # whatever Adam remembers
            new = (optax.apply_updates(state.params, updates), batch_stats, optimizer)
            old = (state.params, state.batch_stats, state.optimizer)
            kept = jax.tree.map(lambda changed, unchanged: jnp.where(finite, changed, unchanged), new, old)
        skipped = state.skipped + jnp.where(finite, 0, 1)
        metrics = {
            "loss": loss.value,
            "gradient_norm": norm,
            "learning_rate": recipe.optimizer.rate(state.step),
            "skipped_steps": skipped,
            **loss.metrics,
        }
        return TrainState(state.step + 1, skipped, *kept), metrics

    def losses(self, state: TrainState, mixture: Mixture, query: Array | None, recipe: Recipe) -> Float[Array, " B"]:
        """The loss of each example, with the running statistics."""
        logits, _ = self.logits(state.params, state.batch_stats, mixture, query, training=False)
        return recipe.objective(logits, mixture, state.step).per_example

    def _flat_train_step(self, state: Flat, batch: Batch, recipe: PyTree, encoder: Flat | None) -> tuple[Flat, Metrics]:
        new, metrics = self._train_step(state.tree, batch, recipe, None if encoder is None else encoder.tree)
        return self.flat(new), metrics

    def _train_step(self, state: TrainState, batch: Batch, recipe: PyTree, encoder: Any) -> tuple[TrainState, Metrics]:
        return self.update(state, *self.mix(batch, state.step, encoder, training=True), recipe)

    def _validation_step(self, state: TrainState, batch: Batch, recipe: PyTree, encoder: Any) -> Float[Array, "*M B"]:
        return self.losses(state, *self.mix(batch, state.step, encoder, training=False), recipe)
