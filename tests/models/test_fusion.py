"""Queries folded into the last convolution, against its feature maps multiplied with every query."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.clipsep import build_model
from clipsep_jax.models.fusion import InnerProduct, LearnedQueries

SIZES = [(8, 8), (7, 5), (1, 2), (16, 3)]


def random(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def last_features(features: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The last up-convolution as the official code has it, on our layouts: [B k t c] -> [B C K T]."""
    up = F.interpolate(features.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear", align_corners=True)
    return F.conv2d(up, kernel.permute(3, 0, 1, 2), bias, padding=1)


def assert_same_function(ours, theirs, arrays: list[np.ndarray]) -> None:
    """Values, and the gradients of all arrays, agree to 1e-5 of the norm of PyTorch's in float64."""
    tensors = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]
    expected = theirs(*tensors)
    cotangent = random(*expected.shape, seed=9)
    expected.backward(torch.tensor(cotangent, dtype=torch.float64))

    @jax.jit
    def value_and_gradients(cotangent, *arrays):
        value, pullback = jax.vjp(ours, *arrays)
        return value, *pullback(cotangent)

    wanted = [expected.detach(), *(tensor.grad for tensor in tensors)]
    for got, want in zip(value_and_gradients(cotangent, *arrays), wanted, strict=True):
        assert got.shape == want.shape
        assert np.linalg.norm(got - want.numpy()) <= 1e-5 * np.linalg.norm(want.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_folded_queries_equal_an_inner_product_with_the_features(height, width):
    head = InnerProduct(ModelConfig(num_channels=5))
    head.scale[...], head.bias[...] = random(5, seed=1), random(1, seed=2)
    scale, bias = torch.tensor(np.asarray(head.scale[...])), torch.tensor(np.asarray(head.bias[...]))

    def plain(vectors, features, kernel, kernel_bias):
        return torch.einsum("bpC,bCkt->bpkt", vectors * scale, last_features(features, kernel, kernel_bias)) + bias

    arrays = [(2, 4, 5), (2, height, width, 6), (6, 3, 3, 5), (5,)]
    assert_same_function(head, plain, [random(*shape, seed=3 + i) for i, shape in enumerate(arrays)])


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_learned_queries_equal_a_convolution_of_the_features(height, width):
    head = LearnedQueries(ModelConfig(num_channels=5, num_learned_queries=2, init_std=1.0), rngs=nnx.Rngs(0))
    matrix, bias = (torch.tensor(np.asarray(x), dtype=torch.float64) for x in (head.kernel[0, 0], head.bias[...]))

    def plain(features, kernel, kernel_bias):
        maps = last_features(features, kernel, kernel_bias)
        return torch.einsum("Cp,bCkt->bpkt", matrix, maps) + bias[:, None, None]

    arrays = [(2, height, width, 6), (6, 3, 3, 5), (5,)]
    assert_same_function(head, plain, [random(*shape, seed=3 + i) for i, shape in enumerate(arrays)])


def test_a_negative_query_adds_to_the_positive_one():
    config = ModelConfig(num_levels=2, width=4, num_channels=5, query_size=6, negative_query=True, init_std=0.3)
    model = build_model(config, nnx.Rngs(0))
    model.eval()
    fusion = model.fusion
    fusion.negative_head.kernel[...] = jnp.asarray(random(6, 5, seed=1))
    inputs, query, negative = (jnp.asarray(random(*shape, seed=2)) for shape in ((1, 8, 8), (1, 2, 6), (1, 2, 6)))
    alone = model(inputs, query).query
    none = model(inputs, jnp.concatenate([query, jnp.zeros_like(query)], axis=-1)).query
    np.testing.assert_allclose(none, alone, rtol=1e-5, atol=1e-6)
    both = model(inputs, jnp.concatenate([query, negative], axis=-1)).query
    kernel = fusion.query_head.kernel[...]
    moved = query + jnp.linalg.lstsq(kernel.T, (negative @ fusion.negative_head.kernel[...])[0].T)[0].T[None]
    np.testing.assert_allclose(both, model(inputs, moved).query, rtol=1e-2, atol=1e-3)
    assert np.abs(both - alone).max() > 1e-3
