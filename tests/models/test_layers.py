"""The fast layers equal their plain forms, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

from clipsep_jax.models.layers import (
    BatchNorm,
    blend_tap_images,
    blend_taps,
    channel_statistics,
    join_channels,
    leaky_relu,
    matmul_strided_conv,
    native_strided_conv,
    strided_form,
    tap_images,
    upsample_conv,
)
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


def assert_same_gradients(ours, plain, *arrays):
    """Values and gradients of two functions agree to 1e-5 of the plain one's."""
    arrays = tuple(map(jnp.asarray, arrays))
    weights = jnp.asarray(random(*jax.eval_shape(plain, *arrays).shape, seed=9))
    found = [jax.vjp(function, *arrays) for function in (ours, plain)]
    for got, want in zip(*[(value, *pullback(weights)) for value, pullback in found], strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_joining_channels_is_concatenation():
    assert_same_gradients(
        join_channels, lambda a, b: jnp.concatenate([a, b], -1), random(2, 3, 4, 5), random(2, 3, 4, 2, seed=1)
    )


def test_leaky_relu_equals_that_of_jax():
    assert_same_gradients(lambda x: leaky_relu(x, 0.2), lambda x: jax.nn.leaky_relu(x, 0.2), random(3, 4, 5))


def test_each_example_has_tap_images_by_its_own_taps():
    def plain(x, taps):
        return jnp.stack([jnp.moveaxis(x[i] @ taps[i].T, -1, 0) for i in range(len(x))])

    assert_same_gradients(tap_images, plain, random(2, 4, 6, 5), random(2, 7, 5, seed=1))


def test_tap_images_in_bfloat16_are_sums_in_float32():
    x, taps = jnp.asarray(random(2, 4, 6, 64), jnp.bfloat16), jnp.asarray(random(2, 7, 64, seed=1), jnp.bfloat16)
    images, pullback = jax.vjp(tap_images, x, taps)
    assert images.dtype == jnp.float32
    exact = np.einsum("bhwc,bnc->bnhw", *(np.asarray(array, np.float64) for array in (x, taps)))
    np.testing.assert_allclose(images, exact, atol=1e-5 * np.abs(exact).max())
    assert all(gradient.dtype == jnp.bfloat16 for gradient in pullback(images))


@pytest.mark.parametrize(("height", "width"), [(2, 2), (6, 10), (7, 5)])
def test_blending_whole_images_equals_blending_with_channels_last(height, width):
    def channels_last(taps):
        return jnp.moveaxis(blend_taps(jnp.moveaxis(taps, (4, 5), (1, 2))), 3, 1)

    assert_same_gradients(blend_tap_images, channels_last, random(2, 3, 3, 4, height, width))


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
        ("gpu", (4, 256, 256, 1), jnp.bfloat16, matmul_strided_conv),
        ("gpu", (4, 16, 16, 512), jnp.bfloat16, native_strided_conv),
        ("gpu", (4, 8, 8, 512), jnp.bfloat16, matmul_strided_conv),
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
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))
    np.testing.assert_array_equal(norms[0].var[...], norms[1].var[...])


class PlainNorm(nnx.BatchNorm):
    """Flax's own, with the variance from the differences."""

    def __init__(self, num_features: int):
        super().__init__(num_features, momentum=0.9, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("slope", [1.0, 0.2, 0.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batch_norm_equals_the_plain_form_with_its_gradients(dtype, slope):
    x, weights = jnp.asarray(random(4, 6, 5, 3) * 3 + 1, dtype), jnp.asarray(random(4, 6, 5, 3))
    found = []
    for norm, how in ((BatchNorm(3, rngs=nnx.Rngs(0)), {"slope": slope}), (PlainNorm(3), {})):
        norm.scale[...], norm.bias[...] = jnp.asarray([0.5, 1.0, 2.0]), jnp.asarray([1.0, 0.0, -1.0])
        graph, params, rest = nnx.split(norm, nnx.Param, ...)

        def loss(params, x, graph=graph, rest=rest, how=how):
            norm = nnx.merge(graph, params, rest, copy=True)
            with jax.numpy_dtype_promotion("standard"):
                y = norm(x, **how)
            y = jnp.tanh((y if how else jax.nn.leaky_relu(y, slope)).astype(x.dtype).astype(jnp.float32))
            return (y * weights).sum(), (y, nnx.state(norm, nnx.BatchStat))

        found.append(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x))
    running = [jax.tree.leaves(values[1][1]) for values, _ in found]  # which are not rounded with the result
    for ours, plain in zip(*running, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-5 * np.abs(plain).max())
    for ours, plain in zip(*map(jax.tree.leaves, found), strict=True):
        assert ours.dtype == plain.dtype
        size = np.abs(np.asarray(plain, np.float32)).max()
        tolerance = 2**-8 if dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(
            np.asarray(ours, np.float32), np.asarray(plain, np.float32), rtol=0, atol=tolerance * size
        )


@pytest.mark.parametrize("silent", [0.0, 0.5, 0.99, 0.9999])
def test_statistics_keep_their_digits_on_mostly_silent_input(silent):
    """Floors of log-magnitudes, -11.5, with a little noise; sums of squares alone would lose the variance."""
    rng = np.random.default_rng(0)
    size = (4, 64, 64, 2)
    floor, loud = -11.5 + 1e-4 * rng.normal(size=size), rng.normal(-5, 3, size)
    x = np.where(rng.random(size) < silent, floor, loud).astype(np.float32)
    exact = x.astype(np.float64).reshape(-1, 2)
    mean, variance = channel_statistics(jnp.asarray(x))
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var(0), rtol=2e-5)
