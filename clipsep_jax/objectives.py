"""The losses: weighted, permutation, noise (CLIPSep, section 3) and mixture invariant, each by BCE or L1.

An objective is a pytree: its formula is static, its numbers (such as gamma) are data of the compiled step.

All start from mask logits. The binary cross entropy is computed from logits, and finite everywhere: equal to PyTorch's
`binary_cross_entropy` of a sigmoid for |logit| <= 10; beyond that PyTorch clamps the logarithm at -100 (and its
gradient), here value and gradient stay the true ones. This departs from the official code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations, product
from math import perm
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from clipsep_jax.config import ObjectiveConfig
from clipsep_jax.structures import Loss, MaskLogits, Mixture

Objective = Callable[[MaskLogits, Mixture, Int[Array, ""]], Loss]

STATIC: dict[str, Any] = {"static": True}  # marks a field that is part of the program
MOST_ORDERS = 4_096  # that are tried one by one
MOST_EXACT_SOURCES = 4  # above, the assignment is found by the Hungarian algorithm


@dataclass(frozen=True)
class Criterion:
    """How a mask is compared with its target, elementwise and without the weight.

    Attributes:
        single: from the logits of a mask, and its target.
        summed: the same for the mask min(1, sigmoid(query) + sigmoid(noise)), from both logits.
        mask: from a mask, and its target.
    """

    single: Callable[[Array, Array], Array]
    summed: Callable[[Array, Array, Array], Array]
    mask: Callable[[Array, Array], Array]


def bce_with_logits(logits: Array, targets: Array) -> Array:
    """BCE(sigmoid(logits), targets) without overflow."""
    return jax.nn.softplus(logits) - targets * logits


@jax.custom_jvp
def bce_of_summed_masks(query: Array, noise: Array, targets: Array) -> Array:
    """BCE(min(1, sigmoid(query) + sigmoid(noise)), targets), finite.

    With a = sigmoid(query), b = sigmoid(noise): the mask is below 1 exactly where query + noise < 0, and there
    1 - a - b = (1 - exp(query + noise)) sigmoid(-query) sigmoid(-noise), so both logarithms are computed from logits.
    A full mask has no gradient and, against a target of 0, costs 100 as in PyTorch; masks within float32's resolution
    of 1 count as full, which bounds the gradient.
    """
    log_mask, log_rest = _logarithms_of_sum(query, noise)
    return -(targets * log_mask + (1 - targets) * log_rest)


def _logarithms_of_sum(query: Array, noise: Array) -> tuple[Array, Array]:
    """Of the mask, and of its rest, which is at least -100."""
    total, below = _total(query, noise)
    log_mask = jnp.where(below, jnp.logaddexp(jax.nn.log_sigmoid(query), jax.nn.log_sigmoid(noise)), 0.0)
    log_rest = jnp.log(-jnp.expm1(total)) + jax.nn.log_sigmoid(-query) + jax.nn.log_sigmoid(-noise)
    return log_mask, jnp.where(below, jnp.maximum(log_rest, -100.0), -100.0)


def _total(query: Array, noise: Array) -> tuple[Array, Array]:
    """The sum of the logits, -1 where the mask is full; and where it is not."""
    below = query + noise < -(2.0**-22)
    return jnp.where(below, query + noise, -1.0), below


def _slope_of_sum(query: Array, noise: Array, targets: Array) -> Array:
    """The derivative of `bce_of_summed_masks` by `query`; by `noise` it is the same with both exchanged."""
    total, below = _total(query, noise)
    _, log_rest = _logarithms_of_sum(query, noise)
    share = jax.nn.sigmoid(jax.nn.log_sigmoid(query) - jax.nn.log_sigmoid(noise))
    of_log_mask = share * jax.nn.sigmoid(-query)
    of_log_rest = jnp.where(log_rest > -100, -1 / jnp.expm1(-total) - jax.nn.sigmoid(query), 0.0)
    return jnp.where(below, -(targets * of_log_mask + (1 - targets) * of_log_rest), 0.0)


bce_of_summed_masks.defjvps(
    lambda tangent, _, query, noise, targets: tangent * _slope_of_sum(query, noise, targets),
    lambda tangent, _, query, noise, targets: tangent * _slope_of_sum(noise, query, targets),
    lambda tangent, _, query, noise, targets: tangent * jnp.subtract(*reversed(_logarithms_of_sum(query, noise))),
)


def bce(masks: Array, targets: Array) -> Array:
    """BCE(masks, targets) of masks in [0, 1], with the logarithms of a mask and of its rest at least -100."""
    log_mask = jnp.maximum(jnp.log(jnp.maximum(masks, jnp.finfo(masks.dtype).tiny)), -100.0)
    log_rest = jnp.where(masks < 1, jnp.log1p(-jnp.where(masks < 1, masks, 0)), -100.0)
    return -(targets * log_mask + (1 - targets) * log_rest)


def l1_with_logits(logits: Array, targets: Array) -> Array:
    """|sigmoid(logits) - targets|."""
    return jnp.abs(jax.nn.sigmoid(logits) - targets)


def l1_of_summed_masks(query: Array, noise: Array, targets: Array) -> Array:
    """|min(1, sigmoid(query) + sigmoid(noise)) - targets|."""
    return jnp.abs(jnp.minimum(1.0, jax.nn.sigmoid(query) + jax.nn.sigmoid(noise)) - targets)


def l1(masks: Array, targets: Array) -> Array:
    """|masks - targets|."""
    return jnp.abs(masks - targets)


CRITERIA = {
    "bce": Criterion(bce_with_logits, bce_of_summed_masks, bce),
    "l1": Criterion(l1_with_logits, l1_of_summed_masks, l1),
}


def best_of_queries(logits: Float[Array, "B N V K T"], mixture: Mixture) -> Float[Array, "B N K T"]:
    """Of several masks for each source, by different queries for it, the one with the least weighted BCE.

    Conditions compete (Tzinis et al., 2022, "Optimal condition training"): no gradient goes to the others.
    Of a source that is not in the mixture the mask with the largest error counts, as none of them shall let it through.
    """
    fixed = jax.lax.stop_gradient(logits)
    error = (mixture.weight[:, None, None] * bce_with_logits(fixed, mixture.targets[:, :, None])).mean(axis=(-2, -1))
    if mixture.sounds is not None:
        error = jnp.where(mixture.sounds[:, :, None], error, -error)
    best = error.argmin(axis=2)[:, :, None, None, None]
    return jnp.take_along_axis(logits, best, axis=2)[:, :, 0]


def best_assignment(cost: Float[Array, "B P N"], most_exact: int = MOST_EXACT_SOURCES) -> Float[Array, " B"]:
    """Least mean cost over the ways to give each of the N columns a row of its own, P >= N.

    By trying all where these are few, with up to `most_exact` columns; else by the Hungarian algorithm.
    """
    num_rows, num_columns = cost.shape[1:]
    if num_columns <= most_exact and perm(num_rows, num_columns) <= MOST_ORDERS:
        choices = jnp.array(list(permutations(range(num_rows), num_columns)))
        return cost[:, choices, jnp.arange(num_columns)].mean(axis=-1).min(axis=-1)
    rows, columns = jax.vmap(optax.assignment.hungarian_algorithm)(jax.lax.stop_gradient(cost))
    return jax.vmap(lambda c, i, j: c[i, j].mean())(cost, rows, columns)


def mean_activation(logits: Float[Array, "B M K T"]) -> Float[Array, " B"]:
    """Mean over the bins of the sum of the masks, as the official code measures activity; between 0 and M."""
    return jax.nn.sigmoid(logits).sum(axis=1).mean(axis=(-2, -1))


def _loss(per_example: Array, logits: MaskLogits, **metrics: Array) -> Loss:
    value = per_example.mean()
    metrics = {"mask_loss": value, "mean_query_activation": mean_activation(logits.query).mean(), **metrics}
    return Loss(value, per_example, metrics)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weighted:
    """Each query's mask against its own source's target."""

    criterion: Criterion = field(metadata=STATIC)

    def __call__(self, logits: MaskLogits, mixture: Mixture, step: Int[Array, ""]) -> Loss:
        return _loss(self.per_example(logits, mixture), logits)

    def per_example(self, logits: MaskLogits, mixture: Mixture) -> Float[Array, " B"]:
        return self.error(logits, mixture).mean(axis=(1, 2, 3))

    def error(self, logits: MaskLogits, mixture: Mixture) -> Float[Array, "B N K T"]:
        """Of each bin, weighted."""
        error = mixture.weight[:, None] * self.criterion.single(logits.query, mixture.targets)
        return error if mixture.target_weight is None else mixture.target_weight[:, :, None, None] * error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PermutationInvariant:
    """The masks against the targets in the best order, per example; there may be more masks than targets."""

    criterion: Criterion = field(metadata=STATIC)

    def __call__(self, logits: MaskLogits, mixture: Mixture, step: Int[Array, ""]) -> Loss:
        error = self.criterion.single(logits.query[:, :, None], mixture.targets[:, None])
        cost = (mixture.weight[:, None, None] * error).mean(axis=(-2, -1))
        return _loss(best_assignment(cost), logits)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoiseInvariant:
    """Noise invariant training (CLIPSep, eq. 3 to 6).

    A source may be explained by its query's mask together with one noise mask: min(1, query + noise). The best
    assignment of noise masks counts, per example; there may be more noise masks than sources. A hinge holds the noise
    masks' mean activation near gamma. During the first `warmup_steps` the query masks are trained alone, as those of
    sources that are not in the mixture always are.
    """

    criterion: Criterion = field(metadata=STATIC)
    regularizer: str = field(metadata=STATIC)
    gamma: PyTree
    regularizer_weight: PyTree
    warmup_steps: PyTree

    def __call__(self, logits: MaskLogits, mixture: Mixture, step: Int[Array, ""]) -> Loss:
        assert logits.noise is not None
        cost = self._assignment_cost(logits.query, logits.noise, mixture)
        if mixture.sounds is not None and mixture.target_weight is not None:
            absent = Weighted(self.criterion).error(logits, mixture).mean(axis=(-2, -1))
            cost = jnp.where(mixture.sounds[:, None], mixture.target_weight[:, None] * cost, absent[:, None])
        joint = best_assignment(cost)
        alone = Weighted(self.criterion).per_example(logits, mixture)
        noise = mean_activation(logits.noise).mean()
        level = noise if self.regularizer == "sum" else noise / mean_activation(logits.query).mean()
        penalty = self.regularizer_weight * jax.nn.relu(level - self.gamma)
        warm = step < self.warmup_steps
        loss = _loss(jnp.where(warm, alone, joint), logits, mean_noise_activation=noise, noise_level=level)
        return Loss(loss.value + jnp.where(warm, 0.0, penalty), loss.per_example, loss.metrics)

    def _assignment_cost(
        self, query: Float[Array, "B N K T"], noise: Float[Array, "B M K T"], mixture: Mixture
    ) -> Float[Array, "B M N"]:
        """Mean weighted error of mask(n, m) = min(1, query_n + noise_m) against target n."""

        @jax.checkpoint  # what is computed for each pair of masks is cheap to repeat, and large to keep
        def cost(query: Array, noise: Array, targets: Array, weight: Array) -> Array:
            error = self.criterion.summed(query[:, None], noise[:, :, None], targets[:, None])
            return (weight[:, None, None] * error).mean(axis=(-2, -1))

        return cost(query, noise, mixture.targets, mixture.weight)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MixtureInvariant:
    """Mixture invariant training (Wisdom et al., 2020): the targets are mixtures of unknown sources.

    Each mask goes to one target; min(1, sum of a target's masks) is compared with it. Of all ways to give S targets
    N masks, S**N, the best one counts, per example. As many small masks explain a source as well as one, a penalty of
    sum(r) / (sqrt(N) |r|), with r the root mean square of each mask, prefers few (Wisdom et al., 2021, "Sparse,
    efficient, and semantic mixture invariant training").
    """

    criterion: Criterion = field(metadata=STATIC)
    sparsity_weight: PyTree

    def __call__(self, logits: MaskLogits, mixture: Mixture, step: Int[Array, ""]) -> Loss:
        masks = jax.nn.sigmoid(logits.query)
        num_masks, num_targets = masks.shape[1], mixture.targets.shape[1]
        ways = jax.nn.one_hot(jnp.array(list(product(range(num_targets), repeat=num_masks))), num_targets, axis=1)
        fixed = jax.lax.stop_gradient(masks)
        costs = jax.lax.map(lambda way: self._cost(jnp.einsum("sn,bnkt->bskt", way, fixed), mixture), ways)
        best = ways[costs.argmin(axis=0)]  # [B S N]
        loss = _loss(self._cost(jnp.einsum("bsn,bnkt->bskt", best, masks), mixture), logits)
        spread = self._spread(masks, mixture).mean()
        return Loss(loss.value + self.sparsity_weight * spread, loss.per_example, loss.metrics | {"spread": spread})

    @staticmethod
    def _spread(masks: Float[Array, "B N K T"], mixture: Mixture) -> Float[Array, " B"]:
        """From 1 / sqrt(N), where one mask is active, to 1, where all are alike."""
        energy = (mixture.weight[:, None] * masks**2).mean(axis=(-2, -1)) + 1e-12
        return jnp.sqrt(energy).sum(axis=1) / jnp.sqrt(energy.sum(axis=1) * masks.shape[1])

    def _cost(self, sums: Float[Array, "B S K T"], mixture: Mixture) -> Float[Array, " B"]:
        error = self.criterion.mask(jnp.minimum(1, sums), mixture.targets)
        return (mixture.weight[:, None] * error).mean(axis=(1, 2, 3))


def build_objective(config: ObjectiveConfig) -> Objective:
    """The one place where an objective's name becomes a function of (logits, mixture, step)."""
    criterion = CRITERIA[config.criterion]
    if config.name == "noise_invariant":
        return NoiseInvariant(
            criterion, config.regularizer, config.gamma, config.regularizer_weight, config.noise_warmup_steps
        )
    if config.name == "mixture_invariant":
        return MixtureInvariant(criterion, config.sparsity_weight)
    return Weighted(criterion) if config.name == "weighted" else PermutationInvariant(criterion)
