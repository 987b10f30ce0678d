"""The losses against PyTorch, where PyTorch's clamping does not act; finite everywhere."""

from dataclasses import replace
from itertools import permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from clipsep_jax.config import ObjectiveConfig
from clipsep_jax.objectives import bce_of_summed_masks, best_assignment, best_of_queries, build_objective
from clipsep_jax.structures import MaskLogits, Mixture
from tests.torch_reference import torch_loss

B, N, M, K, T = 3, 2, 2, 8, 6


def draw(scale: float = 10.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    query, noise = rng.uniform(-scale, scale, (2, B, N, K, T))
    targets = (rng.uniform(size=(B, N, K, T)) > 0.5).astype(np.float64)
    return query, noise, targets, rng.uniform(1e-3, 10, (B, K, T))


CONFIGS = [
    ObjectiveConfig(name="weighted"),
    ObjectiveConfig(name="permutation_invariant"),
    ObjectiveConfig(name="noise_invariant"),
    ObjectiveConfig(name="noise_invariant", gamma=2.0),
    ObjectiveConfig(name="noise_invariant", regularizer="ratio", regularizer_weight=0.7),
]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_slopes_of_summed_masks_are_those_of_the_formula(scale):
    rng = np.random.default_rng(0)
    numbers = (*rng.normal(-1, scale, (2, 500)).astype(np.float32), rng.uniform(size=500).astype(np.float32))
    numbers = tuple(x[np.abs(numbers[0] + numbers[1]) > 1e-3] for x in numbers)  # a full mask's formula is another one
    ours = jax.grad(lambda *x: bce_of_summed_masks(*x).sum(), (0, 1, 2))(*map(jnp.asarray, numbers))
    query, noise, targets = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers)
    mask = torch.sigmoid(query) + torch.sigmoid(noise)
    full = mask >= 1
    rest = torch.where(full, -100, torch.log1p(-torch.where(full, 0, mask)))
    (-(targets * torch.log(mask.clamp(max=1)) + (1 - targets) * rest)).sum().backward()
    for got, want in zip(ours, (query.grad, noise.grad, targets.grad), strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.name}-{c.regularizer}-{c.gamma}")
@pytest.mark.parametrize("scale", [0.1, 3.0, 10.0])
def test_loss_and_gradients_equal_pytorch(config, scale):
    query, noise, targets, weight = draw(scale)
    tensors = [torch.tensor(x, requires_grad=i < 2) for i, x in enumerate((query, noise, targets, weight))]
    expected = torch_loss(config, *tensors)
    expected.backward()

    def ours(query, noise):
        mixture = Mixture(jnp.ones((B, K, T)), jnp.float32(targets), jnp.float32(weight))
        return build_objective(config)(MaskLogits(query, noise), mixture, jnp.array(0)).value

    value, grads = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(jnp.float32(query), jnp.float32(noise))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-4)
    for got, tensor in zip(grads, tensors, strict=False):
        want = np.zeros(got.shape) if tensor.grad is None else tensor.grad.numpy()
        assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want)


@pytest.mark.parametrize("name", ["weighted", "permutation_invariant", "noise_invariant", "mixture_invariant"])
@pytest.mark.parametrize("size", [20.0, 100.0, 1e4, 1e30])
def test_loss_and_gradients_are_finite_at_any_logit(name, size):
    signs = jnp.array([[-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])[:, :, None, None]
    query = size * signs * jnp.ones((B, N, K, T))
    noise = -query.at[:, :, :2].multiply(0.999)
    mixture = Mixture(
        jnp.ones((B, K, T)),
        jnp.broadcast_to(jnp.arange(T, dtype=jnp.float32) % 2, (B, N, K, T)),
        jnp.full((B, K, T), 10.0),
    )
    objective = build_objective(ObjectiveConfig(name=name))

    def loss(query, noise):
        return objective(MaskLogits(query, noise), mixture, jnp.array(0)).value

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(query, noise)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)


def test_noise_warmup_trains_the_query_masks_alone():
    query, noise, targets, weight = (jnp.float32(x) for x in draw(2.0))
    mixture = Mixture(jnp.ones((B, K, T)), targets, weight)
    warm = build_objective(ObjectiveConfig(name="noise_invariant", noise_warmup_steps=5))
    plain = build_objective(ObjectiveConfig(name="weighted"))

    def loss(noise, step):
        return warm(MaskLogits(query, noise), mixture, jnp.array(step)).value

    assert loss(noise, 4) == plain(MaskLogits(query, None), mixture, jnp.array(4)).value
    assert not jax.grad(loss)(noise, 4).any()
    assert jax.grad(loss)(noise, 5).any()


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 2), (3, 3), (4, 3), (4, 4), (6, 4)])
def test_best_assignment_is_the_least_of_all_either_way(rows, columns):
    """Trying all orders, the Hungarian algorithm, and a plain loop agree, in value and gradient."""
    cost = np.random.default_rng(rows).uniform(size=(5, rows, columns)).astype(np.float32)
    orders = list(permutations(range(rows), columns))
    expected = [min(np.mean([c[o[n], n] for n in range(columns)]) for o in orders) for c in cost]
    gradients = []
    for most_exact in (4, 0):
        value, gradient = jax.jit(jax.value_and_grad(lambda c, m=most_exact: best_assignment(c, m).sum()))(cost)
        np.testing.assert_allclose(value, np.sum(expected), rtol=1e-6)
        gradients.append(gradient)
    np.testing.assert_array_equal(*gradients)


def test_many_masks_for_few_sources_are_assigned_without_trying_all_orders():
    """Of 40 masks there are two million orders for four sources."""
    cost = np.random.default_rng(0).uniform(size=(3, 40, 4)).astype(np.float32)
    rows, columns = zip(*map(linear_sum_assignment, cost), strict=True)
    expected = [c[i, j].mean() for c, i, j in zip(cost, rows, columns, strict=True)]
    np.testing.assert_allclose(jax.jit(best_assignment)(cost), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["permutation_invariant", "noise_invariant"])
@pytest.mark.parametrize(("sources", "masks"), [(3, 3), (3, 5), (5, 6)])
def test_invariant_objectives_take_any_number_of_sources_and_masks(name, sources, masks):
    """The loss does not depend on the order of the masks, and each source gets one of its own."""
    rng = np.random.default_rng(0)
    targets = jnp.asarray(rng.uniform(size=(2, sources, K, T)) > 0.5, jnp.float32)
    mixture = Mixture(jnp.ones((2, K, T)), targets, jnp.asarray(rng.uniform(0.1, 1, (2, K, T)), jnp.float32))
    logits = jnp.asarray(rng.normal(size=(2, masks, K, T)), jnp.float32)
    perfect = jnp.concatenate([40 * targets - 20, jnp.full((2, masks - sources, K, T), -20.0)], axis=1)
    objective = build_objective(ObjectiveConfig(name=name, regularizer_weight=0.0))

    @jax.jit
    def loss(masks):
        silent = jnp.full((2, sources, K, T), -30.0)
        both = MaskLogits(masks) if name == "permutation_invariant" else MaskLogits(silent, masks)
        return objective(both, mixture, jnp.array(0)).value

    assert float(loss(logits[:, ::-1])) == pytest.approx(float(loss(logits)), rel=1e-5)
    assert loss(perfect[:, ::-1]) < 1e-6 < loss(logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weighted", "permutation_invariant", "noise_invariant"])
def test_l1_is_the_distance_of_masks(name):
    query, noise, targets, weight = (jnp.float32(x) for x in draw(3.0))
    mixture = Mixture(jnp.ones((B, K, T)), targets, weight)
    config = ObjectiveConfig(name=name, criterion="l1", regularizer_weight=0.0)
    q, p = jax.nn.sigmoid(query), jax.nn.sigmoid(noise)

    def distance(masks):
        return np.mean(weight[:, None] * np.abs(masks - targets), axis=(1, 2, 3))

    candidates = {
        "weighted": [q],
        "permutation_invariant": [q, q[:, ::-1]],
        "noise_invariant": [np.minimum(1, q + p), np.minimum(1, q + p[:, ::-1])],
    }[name]
    expected = np.min([distance(masks) for masks in candidates], axis=0).mean()
    np.testing.assert_allclose(
        build_objective(config)(MaskLogits(query, noise), mixture, jnp.array(0)).value, expected, rtol=1e-5
    )


@pytest.mark.parametrize("criterion", ["bce", "l1"])
def test_mixture_invariance_takes_the_best_way_to_sum_masks_to_mixtures(criterion):
    """Four masks, two targets: the value and the gradient of all ways tried in PyTorch."""
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(-1, 2, (B, 4, K, T)), (rng.uniform(size=(B, 2, K, T)) > 0.5).astype(np.float64)
    weight = rng.uniform(1e-3, 10, (B, K, T))
    leaf = torch.tensor(logits, requires_grad=True)
    masks, wanted, weights = torch.sigmoid(leaf), torch.tensor(targets), torch.tensor(weight)[:, None]
    costs = []
    for way in product(range(2), repeat=4):
        sums = [sum((masks[:, n] for n in range(4) if way[n] == s), torch.zeros(B, K, T)) for s in range(2)]
        together = torch.stack(sums, dim=1).clamp(max=1)
        error = F.binary_cross_entropy(together, wanted, reduction="none") if criterion == "bce" else None
        costs.append((weights * ((together - wanted).abs() if error is None else error)).mean(dim=(1, 2, 3)))
    expected = torch.stack(costs).min(dim=0).values.mean()
    expected.backward()

    mixture = Mixture(jnp.ones((B, K, T)), jnp.float32(targets), jnp.float32(weight))
    objective = build_objective(ObjectiveConfig(name="mixture_invariant", criterion=criterion))
    value, gradient = jax.value_and_grad(lambda q: objective(MaskLogits(q), mixture, jnp.array(0)).value)(
        jnp.float32(logits)
    )
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    want = leaf.grad.numpy()
    assert np.linalg.norm(gradient - want) <= 1e-4 * np.linalg.norm(want)


def test_masks_that_make_up_the_mixtures_cost_nothing_in_any_order():
    parts = jnp.asarray(np.random.default_rng(2).integers(0, 4, (B, 1, K, T)) == np.arange(4)[:, None, None])
    targets = jnp.stack([parts[:, 0] | parts[:, 1], parts[:, 2] | parts[:, 3]], axis=1).astype(jnp.float32)
    mixture = Mixture(jnp.ones((B, K, T)), targets, jnp.ones((B, K, T)))
    objective = build_objective(ObjectiveConfig(name="mixture_invariant"))
    logits = jnp.where(parts, 25.0, -25.0)
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        assert objective(MaskLogits(logits[:, jnp.array(order)]), mixture, jnp.array(0)).value < 1e-6
    assert objective(MaskLogits(logits[:, jnp.array([0, 0, 2, 3])]), mixture, jnp.array(0)).value > 1


@pytest.mark.parametrize("name", ["weighted", "noise_invariant"])
def test_masks_for_what_is_not_there_are_trained_to_zero_alone(name):
    """A source that sounds may be explained by noise masks too, one that does not by nothing; both by their weights."""
    rng = np.random.default_rng(5)
    sounds = np.array([[True, True, False], [True, False, False]])
    targets = (rng.uniform(size=(2, 3, K, T)) > 0.5) * sounds[:, :, None, None]
    weight = rng.uniform(0.1, 1, (2, K, T))
    shares = np.array([[1.2, 1.2, 0.6], [1.5, 0.75, 0.75]])
    query, noise = rng.normal(size=(2, 3, K, T)) - 2, rng.normal(size=(2, 3, K, T)) - 2
    masks, noise_masks = 1 / (1 + np.exp(-query)), 1 / (1 + np.exp(-noise))

    def error(mask, b, n):
        return shares[b, n] * (weight[b] * np.abs(mask - targets[b, n])).mean()

    expected = []
    for b in range(2):
        alone = [error(masks[b, n], b, n) for n in range(3)]
        joint = [[error(np.minimum(1, masks[b, n] + noise_masks[b, m]), b, n) if sounds[b, n] else alone[n]
                  for n in range(3)] for m in range(3)]  # fmt: skip
        ways = [np.mean([joint[way[n]][n] for n in range(3)]) for way in permutations(range(3))]
        expected.append(np.mean(alone) if name == "weighted" else min(ways))
    arrays = [jnp.asarray(x, jnp.float32) for x in (targets, weight, shares, query, noise)]
    mixture = Mixture(jnp.ones((2, K, T)), *arrays[:3], jnp.asarray(sounds))
    objective = build_objective(ObjectiveConfig(name=name, criterion="l1", regularizer_weight=0.0))
    loss = objective(MaskLogits(*arrays[3:]), mixture, jnp.array(0))
    np.testing.assert_allclose(loss.per_example, expected, rtol=1e-5)


def test_the_best_of_several_queries_counts_and_alone_has_a_gradient():
    rng = np.random.default_rng(2)
    every = rng.normal(size=(2, N, 3, K, T)).astype(np.float32)
    targets = (rng.uniform(size=(2, N, K, T)) > 0.5).astype(np.float32)
    weight = rng.uniform(0.1, 1, (2, K, T)).astype(np.float32)
    mixture = Mixture(jnp.ones((2, K, T)), jnp.asarray(targets), jnp.asarray(weight))
    errors = (weight[:, None, None] * (np.logaddexp(0, every) - targets[:, :, None] * every)).mean(axis=(-2, -1))
    objective = build_objective(ObjectiveConfig(name="weighted"))

    def loss(every):
        return objective(MaskLogits(best_of_queries(every, mixture)), mixture, jnp.array(0)).value

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(every))
    np.testing.assert_allclose(value, errors.min(axis=2).mean(), rtol=1e-5)
    best = np.eye(3, dtype=bool)[errors.argmin(axis=2)]
    np.testing.assert_array_equal(np.asarray(gradient).any(axis=(-2, -1)), best)
    absent = replace(mixture, sounds=jnp.zeros((2, N), bool))  # the loudest of these must be trained
    masks = best_of_queries(jnp.asarray(every), absent)
    chosen = np.take_along_axis(every, errors.argmax(axis=2)[:, :, None, None, None], axis=2)[:, :, 0]
    np.testing.assert_array_equal(masks, chosen)


def test_a_penalty_prefers_few_active_masks():
    """From 1 / sqrt(N), where one mask is active, to 1, where all are alike; against a plain form in float64."""
    rng = np.random.default_rng(4)
    weight = rng.uniform(0.1, 1, (2, K, T))
    logits, targets = rng.normal(size=(2, 4, K, T)), (rng.uniform(size=(2, 2, K, T)) > 0.5).astype(np.float32)

    def spread(logits):
        mixture = Mixture(jnp.ones((2, K, T)), jnp.asarray(targets), jnp.asarray(weight, jnp.float32))
        arguments = MaskLogits(jnp.asarray(logits, jnp.float32)), mixture, jnp.array(0)
        plain, sparse = (
            build_objective(ObjectiveConfig(name="mixture_invariant", sparsity_weight=w))(*arguments)
            for w in (0.0, 0.5)
        )
        np.testing.assert_allclose(sparse.value - plain.value, 0.5 * sparse.metrics["spread"], rtol=1e-4)
        np.testing.assert_array_equal(plain.per_example, sparse.per_example)
        return float(sparse.metrics["spread"])

    masks = 1 / (1 + np.exp(-logits))
    r = np.sqrt((weight[:, None] * masks**2).mean(axis=(-2, -1)))
    expected = (r.sum(axis=1) / (2 * np.linalg.norm(r, axis=1))).mean()
    np.testing.assert_allclose(spread(logits), expected, rtol=1e-5)
    alone = np.full_like(logits, -30)
    alone[:, 1] = 2
    np.testing.assert_allclose(spread(alone), 0.5, rtol=1e-3)
    np.testing.assert_allclose(spread(np.ones_like(logits)), 1, rtol=1e-5)


def test_mixture_invariance_may_have_more_masks_than_sources():
    """Four masks, two of which share a target: the right ones have no loss, in any order."""
    targets = np.zeros((1, 2, K, T), np.float32)
    targets[:, 0, :4], targets[:, 1, 4:] = 1, 1
    masks = np.full((1, 4, K, T), -20.0, np.float32)
    masks[:, 2, :2], masks[:, 0, 2:4], masks[:, 3, 4:] = 20, 20, 20
    mixture = Mixture(jnp.ones((1, K, T)), jnp.asarray(targets), jnp.ones((1, K, T)))
    objective = build_objective(ObjectiveConfig(name="mixture_invariant"))
    assert objective(MaskLogits(jnp.asarray(masks)), mixture, jnp.array(0)).value < 1e-6
    assert objective(MaskLogits(jnp.asarray(masks[:, :3])), mixture, jnp.array(0)).value > 1
