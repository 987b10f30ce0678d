"""The losses against PyTorch, where PyTorch's clamping does not act; finite everywhere."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipsep_jax.config import ObjectiveConfig
from clipsep_jax.objectives import best_permutation, build_objective
from clipsep_jax.structures import MaskLogits, Mixture

B, N, M, K, T = 3, 2, 2, 8, 6


def draw(scale: float = 10.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    query, noise = rng.uniform(-scale, scale, (2, B, N, K, T))
    targets = (rng.uniform(size=(B, N, K, T)) > 0.5).astype(np.float64)
    return query, noise, targets, rng.uniform(1e-3, 10, (B, K, T))


def bce(mask: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy(mask, target, weight, reduction="none").mean(dim=(-2, -1))


def torch_loss(config: ObjectiveConfig, query, noise, targets, weight) -> torch.Tensor:
    q, p = torch.sigmoid(query), torch.sigmoid(noise)
    if config.name == "weighted_bce":
        return torch.stack([bce(q[:, n], targets[:, n], weight) for n in range(N)]).mean()
    orders = list(permutations(range(N)))
    if config.name == "permutation_invariant":
        cost = [sum(bce(q[:, o[n]], targets[:, n], weight) for n in range(N)) / N for o in orders]
        return torch.stack(cost).min(dim=0).values.mean()
    joint = [[1 - F.relu(1 - (q[:, n] + p[:, m])) for m in range(M)] for n in range(N)]
    cost = [sum(bce(joint[n][o[n]], targets[:, n], weight) for n in range(N)) / N for o in orders]
    level = p.sum(dim=1).mean()
    if config.regularizer == "ratio":
        level = level / q.sum(dim=1).mean()
    return torch.stack(cost).min(dim=0).values.mean() + config.regularizer_weight * F.relu(level - config.gamma)


CONFIGS = [
    ObjectiveConfig(name="weighted_bce"),
    ObjectiveConfig(name="permutation_invariant"),
    ObjectiveConfig(name="noise_invariant"),
    ObjectiveConfig(name="noise_invariant", gamma=2.0),
    ObjectiveConfig(name="noise_invariant", regularizer="ratio", regularizer_weight=0.7),
]


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

    value, grads = jax.value_and_grad(ours, argnums=(0, 1))(jnp.float32(query), jnp.float32(noise))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-4)
    for got, tensor in zip(grads, tensors, strict=False):
        want = np.zeros(got.shape) if tensor.grad is None else tensor.grad.numpy()
        assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want)


@pytest.mark.parametrize("name", ["weighted_bce", "permutation_invariant", "noise_invariant"])
@pytest.mark.parametrize("size", [20.0, 100.0, 1e4, 1e30])
def test_loss_and_gradients_are_finite_at_any_logit(name, size):
    signs = jnp.array([[-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])[:, :, None, None]
    query = size * signs * jnp.ones((B, N, K, T))
    noise = -query.at[:, :, :2].multiply(0.999)
    mixture = Mixture(jnp.ones((B, K, T)), (jnp.arange(T) % 2) * jnp.ones((B, N, K, T)), jnp.full((B, K, T), 10.0))
    objective = build_objective(ObjectiveConfig(name=name))

    def loss(query, noise):
        return objective(MaskLogits(query, noise), mixture, jnp.array(0)).value

    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(query, noise)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)


def test_noise_warmup_trains_the_query_masks_alone():
    query, noise, targets, weight = (jnp.float32(x) for x in draw(2.0))
    mixture = Mixture(jnp.ones((B, K, T)), targets, weight)
    warm = build_objective(ObjectiveConfig(name="noise_invariant", noise_warmup_steps=5))
    plain = build_objective(ObjectiveConfig(name="weighted_bce"))

    def loss(noise, step):
        return warm(MaskLogits(query, noise), mixture, jnp.array(step)).value

    assert loss(noise, 4) == plain(MaskLogits(query, None), mixture, jnp.array(4)).value
    assert not jax.grad(loss)(noise, 4).any()
    assert jax.grad(loss)(noise, 5).any()


def test_best_permutation_is_the_least_of_all():
    cost = np.random.default_rng(0).uniform(size=(5, 4, 3)).astype(np.float32)
    expected = [min(np.mean([c[o[n], n] for n in range(3)]) for o in permutations(range(4), 3)) for c in cost]
    np.testing.assert_allclose(best_permutation(jnp.asarray(cost)), expected, rtol=1e-6)
