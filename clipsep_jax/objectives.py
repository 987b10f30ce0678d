"""The losses: weighted BCE, permutation invariant, noise invariant (CLIPSep, section 3).

All start from mask logits. The binary cross entropy is computed from logits where that is possible, and finite
everywhere: equal to PyTorch's `binary_cross_entropy` of a sigmoid for |logit| <= 10; beyond that PyTorch clamps the
logarithm at -100 (and its gradient), here value and gradient stay the true ones. This departs from the official code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from clipsep_jax.config import ObjectiveConfig
from clipsep_jax.structures import Loss, MaskLogits, Mixture

Objective = Callable[[MaskLogits, Mixture, Int[Array, ""]], Loss]


def bce_with_logits(logits: Array, targets: Array, weight: Array) -> Array:
    """weight * BCE(sigmoid(logits), targets), elementwise and without overflow."""
    return weight * (jax.nn.softplus(logits) - targets * logits)


def pairwise_bce(logits: Float[Array, "B P K T"], mixture: Mixture) -> Float[Array, "B P N"]:
    """Mean weighted BCE of every mask p against every target n.

    The mean over bins of softplus(l) - t l is linear in t, so all pairs cost one contraction.
    """
    weighted = mixture.weight[:, None]
    constant = jnp.mean(weighted * jax.nn.softplus(logits), axis=(-2, -1))
    num_bins = logits.shape[-1] * logits.shape[-2]
    products = jnp.einsum("bpkt,bnkt->bpn", weighted * logits, mixture.targets, precision=jax.lax.Precision.HIGHEST)
    return constant[:, :, None] - products / num_bins


def best_permutation(cost: Float[Array, "B P N"]) -> Float[Array, "B"]:
    """Least mean cost over the ways to give each of the N columns a row of its own."""
    num_rows, num_columns = cost.shape[1:]
    choices = jnp.array(list(permutations(range(num_rows), num_columns)))
    totals = cost[:, choices, jnp.arange(num_columns)].mean(axis=-1)
    return totals.min(axis=-1)


def mean_activation(logits: Float[Array, "B M K T"]) -> Float[Array, "B"]:
    """Mean over the bins of the sum of the masks, as the official code measures activity; between 0 and M."""
    return jax.nn.sigmoid(logits).sum(axis=1).mean(axis=(-2, -1))


def _loss(per_example: Array, logits: MaskLogits, **metrics: Array) -> Loss:
    value = per_example.mean()
    metrics = {"bce": value, "mean_query_activation": mean_activation(logits.query).mean(), **metrics}
    return Loss(value, per_example, metrics)


def weighted_bce(logits: MaskLogits, mixture: Mixture, step: Int[Array, ""]) -> Loss:
    """Each query's mask against its own source's target."""
    del step
    bce = bce_with_logits(logits.query, mixture.targets, mixture.weight[:, None])
    return _loss(bce.mean(axis=(1, 2, 3)), logits)


def permutation_invariant(logits: MaskLogits, mixture: Mixture, step: Int[Array, ""]) -> Loss:
    """The masks against the targets in the best order, per example."""
    del step
    return _loss(best_permutation(pairwise_bce(logits.query, mixture)), logits)


@dataclass(frozen=True)
class NoiseInvariant:
    """Noise invariant training (CLIPSep, eq. 3 to 6).

    A source may be explained by its query's mask together with one noise mask: min(1, query + noise). The best
    assignment of noise masks counts, per example. A hinge holds the noise masks' mean activation near gamma. During the
    first `noise_warmup_steps` the query masks are trained alone.
    """

    config: ObjectiveConfig

    def __call__(self, logits: MaskLogits, mixture: Mixture, step: Int[Array, ""]) -> Loss:
        assert logits.noise is not None
        cost = self._assignment_cost(logits, mixture)
        joint = best_permutation(cost)
        alone = bce_with_logits(logits.query, mixture.targets, mixture.weight[:, None]).mean(axis=(1, 2, 3))
        noise = mean_activation(logits.noise).mean()
        query = mean_activation(logits.query).mean()
        level = noise if self.config.regularizer == "sum" else noise / query
        penalty = self.config.regularizer_weight * jax.nn.relu(level - self.config.gamma)
        warm = step < self.config.noise_warmup_steps
        loss = _loss(jnp.where(warm, alone, joint), logits, mean_noise_activation=noise, noise_level=level)
        return Loss(loss.value + jnp.where(warm, 0.0, penalty), loss.per_example, loss.metrics)

    def _assignment_cost(self, logits: MaskLogits, mixture: Mixture) -> Float[Array, "B M N"]:
        """Mean weighted BCE of mask(n, m) = min(1, query_n + noise_m) against target n."""
        assert logits.noise is not None
        query, noise = logits.query[:, None], logits.noise[:, :, None]
        bce = bce_of_summed_masks(query, noise, mixture.targets[:, None], mixture.weight[:, None, None])
        return bce.mean(axis=(-2, -1))


def bce_of_summed_masks(query: Array, noise: Array, targets: Array, weight: Array) -> Array:
    """weight * BCE(min(1, sigmoid(query) + sigmoid(noise)), targets), elementwise and finite.

    With a = sigmoid(query), b = sigmoid(noise): the mask is below 1 exactly where query + noise < 0, and there
    1 - a - b = (1 - exp(query + noise)) sigmoid(-query) sigmoid(-noise), so both logarithms are computed from logits.
    A full mask has no gradient and, against a target of 0, costs 100 as in PyTorch; masks within float32's resolution
    of 1 count as full, which bounds the gradient.
    """
    total = query + noise
    below = total < -(2.0**-22)
    safe = jnp.where(below, total, -1.0)
    log_mask = jnp.where(below, jnp.logaddexp(jax.nn.log_sigmoid(query), jax.nn.log_sigmoid(noise)), 0.0)
    log_rest = jnp.log(-jnp.expm1(safe)) + jax.nn.log_sigmoid(-query) + jax.nn.log_sigmoid(-noise)
    log_rest = jnp.where(below, jnp.maximum(log_rest, -100.0), -100.0)
    return -weight * (targets * log_mask + (1 - targets) * log_rest)


def build_objective(config: ObjectiveConfig) -> Objective:
    """The one place where an objective's name becomes a function of (logits, mixture, step)."""
    if config.name == "noise_invariant":
        return NoiseInvariant(config)
    return {"weighted_bce": weighted_bce, "permutation_invariant": permutation_invariant}[config.name]
