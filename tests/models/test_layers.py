"""The fast layers equal their plain forms, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from clipsep_jax.models.layers import BatchNorm, matmul_strided_conv, native_strided_conv, strided_form, upsample_conv
from clipsep_jax.models.winograd import winograd_strided_conv


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_same_function(ours, theirs, x, kernel, kernel_axes):
    """Values and both gradients agree to 1e-5 of the reference's norm.

    `theirs` works on PyTorch's layouts; `kernel_axes` permutes our kernel into OIHW.
    """
    weight = torch.tensor(kernel.transpose(kernel_axes), dtype=torch.float64, requires_grad=True)
    image = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float64, requires_grad=True)
    expected = theirs(image, weight)
    cotangent = random(*expected.permute(0, 2, 3, 1).shape, seed=2)
    expected.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2), dtype=torch.float64))

    @jax.jit
    def value_and_gradients(x, kernel, cotangent):
        value, pullback = jax.vjp(ours, x, kernel)
        return value, *pullback(cotangent)

    value, d_x, d_kernel = value_and_gradients(x, kernel, cotangent)
    pairs = [
        (value, expected.detach().numpy().transpose(0, 2, 3, 1)),
        (d_x, image.grad.numpy().transpose(0, 2, 3, 1)),
        (d_kernel, weight.grad.numpy().transpose(np.argsort(kernel_axes))),
    ]
    for got, want in pairs:
        assert got.shape == want.shape
        assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (1, 2), (1, 1), (3, 16)])
def test_upsample_conv_equals_upsampling_then_convolving(height, width):
    def plain(image, weight):
        up = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=True)
        return F.conv2d(up, weight, padding=1)

    kernel = random(5, 3, 3, 4, seed=1)
    assert_same_function(upsample_conv, plain, random(2, height, width, 5), kernel, (3, 0, 1, 2))


ANY_SIZE = [(2, 2), (6, 10), (7, 5), (8, 8), (64, 32)]
WHOLE_TILES = [(4, 4), (4, 12), (8, 8), (64, 32)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "height", "width"),
    [(form, *size) for form in (native_strided_conv, matmul_strided_conv) for size in ANY_SIZE]
    + [(winograd_strided_conv, *size) for size in WHOLE_TILES],
)
def test_strided_conv_equals_convolving(form, height, width):
    def plain(image, weight):
        return F.conv2d(image, weight, stride=2, padding=1)

    assert_same_function(form, plain, random(2, height, width, 9), random(4, 4, 9, 5, seed=1), (3, 2, 0, 1))


@pytest.mark.parametrize(
    ("backend", "shape", "dtype", "form"),
    [
        ("cpu", (4, 256, 256, 1), jnp.float32, matmul_strided_conv),
        ("cpu", (4, 128, 128, 64), jnp.float32, winograd_strided_conv),
        ("cpu", (4, 128, 128, 64), jnp.bfloat16, matmul_strided_conv),
        ("cpu", (4, 34, 128, 64), jnp.float32, matmul_strided_conv),
        ("cpu", (4, 16, 16, 512), jnp.float32, matmul_strided_conv),
        ("gpu", (4, 128, 128, 64), jnp.float32, native_strided_conv),
        ("tpu", (4, 16, 16, 512), jnp.float32, native_strided_conv),
    ],
)
def test_the_form_is_chosen_by_backend_size_and_precision(monkeypatch, backend, shape, dtype, form):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert strided_form(shape, dtype) is form


def test_every_size_that_the_choice_gives_to_winograd_has_whole_tiles(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    chosen = [(h, w) for h in range(2, 80, 2) for w in range(2, 80, 2)]
    chosen = [side for side in chosen if strided_form((1, *side, 64), jnp.float32) is winograd_strided_conv]
    assert chosen
    assert all(h % 4 == w % 4 == 0 for h, w in chosen)


def test_batch_norm_equals_pytorch_but_for_the_unbiased_variance():
    x = random(4, 6, 5, 3) * 3 + 1
    ours = BatchNorm(3, rngs=nnx.Rngs(0))
    theirs = torch.nn.BatchNorm2d(3)
    theirs.weight.data = torch.tensor(np.asarray(ours.scale[...]))
    got = ours(jnp.asarray(x))
    want = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), atol=1e-6)
    n = 4 * 6 * 5
    biased = 0.9 + (theirs.running_var.numpy() - 0.9) * (n - 1) / n
    np.testing.assert_allclose(ours.var[...], biased, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norm_of_bfloat16_is_that_of_the_same_values_in_float32(training):
    """A mean far from zero beside a small variance would not survive statistics in bfloat16."""
    x = jnp.asarray(-20 + 0.3 * random(4, 6, 5, 3), jnp.bfloat16)
    norms = [BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2)]
    for norm in norms:
        norm.mean[...], norm.var[...] = jnp.full(3, -20.1), jnp.full(3, 0.1)
        norm.train() if training else norm.eval()
    rounded, exact = norms[0](x), norms[1](x.astype(jnp.float32))
    assert rounded.dtype == jnp.float32
    np.testing.assert_array_equal(rounded, exact)
    np.testing.assert_array_equal(norms[0].var[...], norms[1].var[...])
