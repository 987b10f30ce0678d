"""Adam, its learning rate, and the clip of its gradients."""

import optax

from clipsep_jax.config import OptimizerConfig


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
