"""Blocks along the frequencies, against a plain form in PyTorch."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.clipsep import build_model
from clipsep_jax.models.tdf_unet import FrequencyBlock
from tests.models.test_clipsep import inputs

CONFIG = ModelConfig(num_levels=2, width=4, num_channels=5, query_size=9, init_std=0.3, num_bins=32)


def test_a_block_equals_its_plain_form_in_value_and_gradients():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        graphdef, state = nnx.split(FrequencyBlock(32, 5, rngs=nnx.Rngs(0)))
        state = jax.tree.map(lambda leaf: leaf.astype(float), state)
        arrays = [rng.normal(size=shape) for shape in ((32, 4), (4, 32), (5,), (5,), (2, 32, 6, 5))]

        @jax.jit
        def ours(first, second, scale, bias, x):
            block = nnx.merge(graphdef, state, copy=True)
            block.first.kernel[...], block.second.kernel[...] = first, second
            block.norm.scale[...], block.norm.bias[...] = scale, bias
            return block(x)

        cotangent = rng.normal(size=(2, 32, 6, 5))
        value, pull = jax.vjp(ours, *map(jnp.asarray, arrays))
        found = [value, *pull(jnp.asarray(cotangent))]
    first, second, scale, bias, x = tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    hidden = torch.nn.functional.linear(x.permute(0, 3, 2, 1), first.T)  # [B C T h]
    hidden = torch.nn.functional.batch_norm(hidden, None, None, scale, bias, training=True)
    expected = x + torch.nn.functional.linear(torch.relu(hidden), second.T).permute(0, 3, 2, 1)
    expected.backward(torch.tensor(cotangent))
    for got, want in zip(found, [expected.detach(), *(tensor.grad for tensor in tensors)], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


@partial(jax.jit, static_argnums=0)
def logits_of(graphdef, state, log_magnitude, query):
    return nnx.merge(graphdef, state, copy=True)(log_magnitude, query).query


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["late", "film"])
def test_at_first_it_is_the_plain_network(fusion):
    config = replace(CONFIG, fusion=fusion)
    log_magnitude, query = (jnp.asarray(x, jnp.float32) for x in inputs(config))
    stronger = build_model(replace(config, network="tdf_unet"), nnx.Rngs(0))
    plain = build_model(config, nnx.Rngs(1))
    own = dict(nnx.to_flat_state(nnx.state(stronger)))
    nnx.update(plain, nnx.from_flat_state([(path, own[path]) for path, _ in nnx.to_flat_state(nnx.state(plain))]))
    found, expected = (logits_of(*nnx.split(model), log_magnitude, query) for model in (stronger, plain))
    np.testing.assert_array_equal(found, expected)
