"""The whole network against a plain PyTorch arrangement of the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.clipsep import CLIPSep, build_model

CONFIG = ModelConfig(num_levels=4, width=6, num_channels=5, num_noise_heads=2, query_size=9, init_std=0.3)


def randomised(model: CLIPSep) -> CLIPSep:
    """The model with every parameter and statistic drawn anew, large enough to matter."""
    graphdef, state = nnx.split(model)
    leaves, treedef = jax.tree.flatten(state)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    drawn = [
        0.3 * jax.random.normal(key, leaf.shape) + 0.5 * (leaf == 1) for key, leaf in zip(keys, leaves, strict=True)
    ]
    drawn_state = jax.tree.unflatten(treedef, drawn)
    model = nnx.merge(graphdef, drawn_state)
    for norm in [model.unet.input_norm, *model.unet.down_norm, *model.unet.up_norm]:
        norm.var[...] = jnp.abs(norm.var[...]) + 0.5
    return model


def plain_forward(model: CLIPSep, log_magnitude: np.ndarray, query: np.ndarray) -> torch.Tensor:
    """The official arrangement, written out: nested blocks, full-size features, inner products last."""

    def tensor(value):
        return torch.tensor(np.asarray(value[...]))

    def conv(x, layer, **kwargs):
        bias = None if getattr(layer, "bias", None) is None else tensor(layer.bias)
        return F.conv2d(x, tensor(layer.kernel).permute(3, 2, 0, 1), bias, padding=1, **kwargs)

    def norm(x, layer):
        return F.batch_norm(x, tensor(layer.mean), tensor(layer.var), tensor(layer.scale), tensor(layer.bias))

    def linear(x, layer):
        return x @ tensor(layer.kernel) + tensor(layer.bias)

    unet, last = model.unet, len(model.unet.down) - 1

    def block(x, level):
        if level > 0:
            x = F.leaky_relu(x, 0.2)
        y = conv(x, unet.down[level], stride=2)
        if 0 < level < last:
            y = norm(y, unet.down_norm[level - 1])
        if level < last:
            y = block(y, level + 1)
        y = F.interpolate(F.relu(y), scale_factor=2, mode="bilinear", align_corners=True)
        if level == 0:
            return conv(y, unet.last)
        y = norm(conv(y, unet.up[level - 1]), unet.up_norm[level - 1])
        return torch.cat([x, y], dim=1)

    features = block(norm(torch.tensor(log_magnitude)[:, None], unet.input_norm), 0)
    projected = linear(torch.tensor(query), model.query_head)
    noise = [linear(projected.mean(dim=1), p) for p in model.noise_heads.projections]
    vectors = torch.sigmoid(torch.cat([projected, torch.stack(noise, dim=1)], dim=1))
    scaled = vectors * tensor(model.inner_product.scale)
    return torch.einsum("bpc,bckt->bpkt", scaled, features) + tensor(model.inner_product.bias)


def test_forward_equals_the_plain_arrangement():
    model = randomised(build_model(CONFIG, nnx.Rngs(0)))
    model.eval()
    rng = np.random.default_rng(0)
    log_magnitude = rng.normal(size=(2, 32, 48)).astype(np.float32)
    query = rng.normal(size=(2, 3, 9)).astype(np.float32)
    got = model(jnp.asarray(log_magnitude), jnp.asarray(query))
    want = plain_forward(model, log_magnitude, query).numpy()
    tolerance = 1e-5 * max(1, np.abs(want).max())
    np.testing.assert_allclose(got.query, want[:, :3], atol=tolerance)
    np.testing.assert_allclose(got.noise, want[:, 3:], atol=tolerance)


def test_no_noise_heads_no_noise_masks():
    model = build_model(ModelConfig(num_levels=2, width=2, query_size=4), nnx.Rngs(0))
    logits = model(jnp.zeros((1, 8, 8)), jnp.zeros((1, 2, 4)))
    assert logits.noise is None
    assert logits.query.shape == (1, 2, 8, 8)


@pytest.mark.slow
def test_full_size_has_the_official_number_of_parameters():
    model = nnx.eval_shape(lambda: build_model(ModelConfig(num_noise_heads=2), nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert round(count / 1e6, 2) == 30.29
