"""Adam, its learning rate, and the clip of its gradients."""

from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from clipsep_jax.config import OptimizerConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Optimizer:
    """Adam behind a clip of the gradients' global norm. A pytree: its numbers are data of the compiled step."""

    learning_rate: PyTree
    warmup_steps: PyTree
    decay_end_step: PyTree
    final_factor: PyTree
    max_gradient_norm: PyTree

    def rate(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """The learning rate of a step, counted from 0.

        `learning_rate` times (step + 1) / warmup_steps, then linear to final_factor at decay_end_step, then constant.
        """
        step, warmup, end = (jnp.asarray(n, float) for n in (step, self.warmup_steps, self.decay_end_step))
        warmup = jnp.maximum(1, warmup)
        rise = _line(self.learning_rate / warmup, self.learning_rate, jnp.maximum(1, warmup - 1), step)
        length = jnp.maximum(1, end - warmup)
        fall = _line(self.learning_rate, self.learning_rate * self.final_factor, length, step - warmup)
        return jnp.where(step < warmup, rise, fall)

    def init(self, params: PyTree) -> PyTree:
        """The optimizer's state before the first step."""
        return self._transformation().init(params)

    def update(self, gradients: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        """What to add to the parameters, and the new state."""
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its floats with the integer count of steps
            return self._transformation().update(gradients, state, params)

    def _transformation(self) -> optax.GradientTransformation:
        return optax.chain(optax.stateless(self._clip), optax.adam(self.rate))

    def _clip(self, gradients: PyTree, params: PyTree) -> PyTree:
        """`optax.clip_by_global_norm`, which takes no array for the largest norm where precisions differ."""
        norm = optax.tree.norm(gradients)

        def clip(gradient: Array) -> Array:
            scaled = gradient / norm.astype(gradient.dtype) * jnp.asarray(self.max_gradient_norm, gradient.dtype)
            return jnp.where(norm < self.max_gradient_norm, gradient, scaled)

        return jax.tree.map(clip, gradients)


def _line(first: PyTree, last: PyTree, length: Array, step: Array) -> Array:
    """From `first` at step 0 to `last` at step `length`, constant outside."""
    rest = 1 - jnp.clip(step, 0, length) / length
    return (first - last) * rest + last


def build_optimizer(config: OptimizerConfig) -> Optimizer:
    """The one place where a config becomes an optimizer."""
    return Optimizer(**asdict(config))
