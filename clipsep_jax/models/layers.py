"""The exact fast layers: the same numbers as the plain form, from fewer and larger matrix products.

The plain forms (upsample, then convolve) are the references in the tests. Kernels of up-convolutions are stored with
their input channels first, as the matrix that they are used as.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from clipsep_jax.models.winograd import _pad, winograd_strided_conv


class BatchNorm(nnx.BatchNorm):
    """PyTorch's BatchNorm in training: statistics over batch and pixels, momentum 0.1 there is 0.9 here.

    The running variance is the biased one; PyTorch keeps the unbiased one (a stated departure of n / (n - 1)).
    Statistics are taken, kept and applied in float32; then the result is rounded to the input's precision. Flax would
    round the statistics if it were given a dtype.
    """

    def __init__(self, num_features: int, *, rngs: nnx.Rngs):
        super().__init__(num_features, momentum=0.9, epsilon=1e-5, scale_init=_around_one, rngs=rngs)

    def __call__(self, x: Float[Array, "*n C"], *how: Any, slope: float = 1.0, **which: Any) -> Float[Array, "*n C"]:
        """The normalised input; what is negative in it times `slope`: 0 for a ReLU, 1 for none."""
        if self.use_running_average:
            with jax.numpy_dtype_promotion("standard"):  # Flax promotes other precisions to its statistics'
                return jax.nn.leaky_relu(super().__call__(x, *how, **which), slope).astype(x.dtype)
        assert self.scale is not None
        assert self.bias is not None
        y, mean, variance = normalize(x, self.scale[...], self.bias[...], self.epsilon, slope)
        for running, found in ((self.mean, mean), (self.var, variance)):
            running[...] = self.momentum * running[...] + (1 - self.momentum) * jax.lax.stop_gradient(found)
        return y


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x: Float[Array, "*n C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float, slope: float = 1.0
) -> tuple[Float[Array, "*n C"], Float[Array, " C"], Float[Array, " C"]]:
    """x with the statistics of its channels replaced by `bias` and `scale`, then as `jax.nn.leaky_relu(..., slope)`.

    Also gives the statistics, mean and variance, through which no gradient goes. It computes in at least float32; the
    result has the precision of x. Forwards it reads x twice, backwards x and the cotangent twice; it keeps just x.
    """
    return _normalize_forward(x, scale, bias, epsilon, slope)[0]


def channel_statistics(x: Float[Array, "B H *n C"]) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    """Mean and variance of each channel in one pass, in at least float32.

    Sums of squares lose digits where the mean is large beside the deviation, as on mostly silent input. So each example
    is shifted by the mean of its first row, and examples are joined by their means (Chan, Golub and LeVeque, 1979).
    """
    x = x.astype(_at_least_float32(x.dtype))
    pixels = tuple(range(1, x.ndim - 1))
    shift = x[:, :1].mean(pixels, keepdims=True)
    shifted = x - shift
    rows = _sums(shifted, jnp.square(shifted), pixels[1:])
    means, squares = (total.sum(1) / (x[0].size / x.shape[-1]) for total in rows)
    variances, means = squares - jnp.square(means), means + shift.reshape(means.shape)
    mean = means.mean(0)
    return mean, (variances + jnp.square(means - mean[None])).mean(0)


def _normalize_forward(
    x: Array, scale: Array, bias: Array, epsilon: float, slope: float
) -> tuple[tuple[Array, Array, Array], Any]:
    mean, variance = channel_statistics(x)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (x.astype(mean.dtype) - _last(mean, x)) * _last(inverse * scale, x) + _last(bias, x)
    return (jnp.where(y > 0, y, slope * y).astype(x.dtype), mean, variance), (x, scale, bias, mean, inverse)


def _normalize_backward(
    _: float, slope: float, saved: Any, cotangents: tuple[Array, Array, Array]
) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, inverse = saved
    d_result = cotangents[0].astype(mean.dtype)

    def parts(after: Array) -> tuple[Array, Array]:
        """The normalised input, and the cotangent before the nonlinearity.

        Both are cheap to compute where they are used. That they depend on `after` keeps XLA from computing them once,
        earlier, and writing and reading them.
        """
        normal = (x.astype(mean.dtype) - _last(mean + 0 * after, x)) * _last(inverse, x)
        positive = normal * _last(scale, x) + _last(bias, x) > 0
        return normal, jnp.where(positive, d_result, slope * d_result)

    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    normal, d_y = parts(d_result[(0,) * len(axes)])
    d_bias, d_scale = (rows.sum((0, 1)) for rows in _sums(d_y, d_y * normal, axes[2:]))
    normal, d_y = parts(d_bias)
    centred = d_y - _last(d_bias / count, x) - normal * _last(d_scale / count, x)
    return (
        (_last(inverse * scale, x) * centred).astype(x.dtype),
        d_scale.astype(scale.dtype),
        d_bias.astype(scale.dtype),
    )


normalize.defvjp(_normalize_forward, _normalize_backward)


def _sums(a: Array, b: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """The sums of both, in one pass."""
    zero = jnp.zeros((), a.dtype)
    return jax.lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), axes)


def _last(vector: Array, like: Array) -> Array:
    """A vector along the last axis of an array."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _at_least_float32(dtype: Any) -> Any:
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def _around_one(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def leaky_relu(x: Float[Array, "*n"], slope: float) -> Float[Array, "*n"]:
    """As `jax.nn.leaky_relu`, for a positive slope; keeps its result, which is needed anyway, and not its input."""
    return jnp.where(x > 0, x, slope * x)


def _leaky_relu_forward(x: Array, slope: float) -> tuple[Array, Array]:
    y = leaky_relu(x, slope)
    return y, y


def _leaky_relu_backward(slope: float, y: Array, cotangent: Array) -> tuple[Array]:
    return (jnp.where(y > 0, cotangent, slope * cotangent),)


leaky_relu.defvjp(_leaky_relu_forward, _leaky_relu_backward)


class DownConv(nnx.Module):
    """4 x 4 convolution of stride 2 and padding 1, without bias; halves even sides."""

    def __init__(self, num_in: int, num_out: int, *, init_std: float, rngs: nnx.Rngs):
        kernel = init_std * jax.random.normal(rngs.params(), (4, 4, num_in, num_out))
        self.kernel = nnx.Param(kernel)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        return strided_conv(x, self.kernel[...].astype(x.dtype))


class UpConv(nnx.Module):
    """Bilinear upsampling by 2 with aligned corners, then a 3 x 3 convolution of padding 1."""

    def __init__(self, num_in: int, num_out: int, *, init_std: float, use_bias: bool = False, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init_std * jax.random.normal(rngs.params(), (num_in, 3, 3, num_out)))
        bound = 1 / np.sqrt(9 * num_in)  # PyTorch's default for a convolution's bias
        bias = jax.random.uniform(rngs.params(), (num_out,), minval=-bound, maxval=bound) if use_bias else None
        self.bias = nnx.Param(bias) if bias is not None else nnx.data(None)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W c"]:
        y = upsample_conv(x, self.kernel[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[None, None, None]


def strided_conv(x: Float[Array, "B H W C"], kernel: Float[Array, "4 4 C c"]) -> Float[Array, "B h w c"]:
    """4 x 4 convolution of stride 2, padding 1, of even sides, in the form that is fastest on this backend."""
    return strided_form(x.shape, x.dtype)(x, kernel)


def strided_form(shape: tuple[int, ...], dtype: Any) -> Callable[[Array, Array], Array]:
    """The one place where a form is chosen; `python -m benchmarks.strided_forms` measures them."""
    _, height, width, channels = shape
    if jax.default_backend() == "gpu":
        return matmul_strided_conv if channels < 8 or max(height, width) <= 8 else native_strided_conv
    if jax.default_backend() != "cpu":
        return native_strided_conv
    if channels < 8:
        return matmul_strided_conv
    wide, whole_tiles = min(height, width) >= 32, height % 4 == width % 4 == 0
    exact = jnp.finfo(dtype).bits >= 32  # Winograd's differences would lose digits that bfloat16 lacks
    return winograd_strided_conv if wide and whole_tiles and exact else matmul_strided_conv


def native_strided_conv(x: Float[Array, "B H W C"], kernel: Float[Array, "4 4 C c"]) -> Float[Array, "B h w c"]:
    """XLA's own convolution."""
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def matmul_strided_conv(x: Float[Array, "B H W C"], kernel: Float[Array, "4 4 C c"]) -> Float[Array, "B h w c"]:
    """One matrix product over all patches."""
    _, height, width, channels = x.shape
    h, w = height // 2, width // 2
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [x[:, i : i + 2 * h : 2, j : j + 2 * w : 2] for i in range(4) for j in range(4)]
    return product(jnp.concatenate(patches, axis=-1), kernel.reshape(16 * channels, -1))


@jax.custom_vjp
def product(x: Float[Array, "*n C"], matrix: Float[Array, "C c"]) -> Float[Array, "*n c"]:
    """x @ matrix; its gradients are written as the products that need no copy of the larger operand."""
    return x @ matrix


def _product_forward(x: Array, matrix: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ matrix, (x, matrix)


def _product_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, matrix = saved
    rows, d_rows = (array.reshape(-1, array.shape[-1]) for array in (x, cotangent))
    return cotangent @ matrix.T, jax.lax.dot_general(rows, d_rows, (((0,), (0,)), ((), ())))


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def tap_images(x: Float[Array, "B h w C"], taps: Float[Array, "B n C"]) -> Float[Array, "B n h w"]:
    """The products of each example's pixels with its own taps, in at least float32.

    Gradients are products in the operands' precision, as everywhere else.
    """
    return jnp.einsum("bhwc,bnc->bnhw", x, taps, preferred_element_type=_at_least_float32(x.dtype))


def _tap_images_forward(x: Array, taps: Array) -> tuple[Array, tuple[Array, Array]]:
    return tap_images(x, taps), (x, taps)


def _tap_images_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, taps = saved
    cotangent = cotangent.astype(x.dtype)
    return jnp.einsum("bnhw,bnc->bhwc", cotangent, taps), jnp.einsum("bnhw,bhwc->bnc", cotangent, x)


tap_images.defvjp(_tap_images_forward, _tap_images_backward)


def upsample_conv(x: Float[Array, "B h w C"], kernel: Float[Array, "C 3 3 c"]) -> Float[Array, "B H W c"]:
    """conv3x3(upsample2(x)) computed at the low resolution.

    Bilinear interpolation is linear and acts on every channel alike, so the nine taps of the kernel are applied
    first, in one matrix product on a quarter of the pixels; what follows are two-tap blends, width first.
    """
    num_in, *taps = kernel.shape
    return blend_taps(product(x, kernel.reshape(num_in, -1)).reshape(*x.shape[:-1], *taps))


def blend_taps(taps: Float[Array, "B h w 3 3 c"]) -> Float[Array, "B H W c"]:
    """Upsamples each of the nine tap images, shifts it by its tap, and sums."""
    rows = upsample_shift_sum(taps, axis=2, taps_axis=4)  # [B h W 3 c]
    return upsample_shift_sum(rows, axis=1, taps_axis=3)


def blend_tap_images(taps: Float[Array, "B 3 3 c h w"]) -> Float[Array, "B c H W"]:
    """`blend_taps` with whole images last, which few channels want."""
    rows = upsample_shift_sum(taps, axis=5, taps_axis=2)  # [B 3 c h W]
    return upsample_shift_sum(rows, axis=3, taps_axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def upsample_shift_sum(x: Array, axis: int, taps_axis: int) -> Array:
    """Along `axis`: sum over the taps d = 0, 1, 2 of upsample2(x_d) shifted by d - 1, zeros outside.

    From n to 2n with aligned corners: output 2k is a x[k-1] + (1-a) x[k] with a = k / (2n-1), output 2k+1 is
    (1-b) x[k] + b x[k+1] with b = (n-1-k) / (2n-1). `taps_axis` disappears.
    """
    n, k = x.shape[axis], np.arange(x.shape[axis])
    taps = [jax.lax.index_in_dim(x, d, taps_axis, keepdims=False) for d in range(3)]
    axis -= taps_axis < axis
    before, after = (_along(axis, weights, taps[0]) for weights in (k / (2 * n - 1), (n - 1 - k) / (2 * n - 1)))

    def even(tap: Array) -> Array:
        return _times(before, _shift(tap, axis, -1)) + _times(1 - before, tap)

    def odd(tap: Array) -> Array:
        return _times(1 - after, tap) + _times(after, _shift(tap, axis, 1))

    at_even = _shift(odd(taps[0]), axis, -1) + even(taps[1]) + odd(taps[2])
    at_odd = even(taps[0]) + odd(taps[1]) + _shift(even(taps[2]), axis, 1)
    joined = jnp.stack([at_even, at_odd], axis=axis + 1)
    return joined.reshape(*joined.shape[:axis], 2 * n, *joined.shape[axis + 2 :]).astype(x.dtype)


def _upsample_shift_sum_forward(x: Array, axis: int, taps_axis: int) -> tuple[Array, None]:
    return upsample_shift_sum(x, axis, taps_axis), None


def _upsample_shift_sum_backward(axis: int, taps_axis: int, _: None, y: Array) -> tuple[Array]:
    """The transpose, as sums over inputs: scattering, which differentiation would give, is slow on CPU."""
    axis -= taps_axis < axis
    n, k = y.shape[axis] // 2, np.arange(y.shape[axis] // 2)
    padded = _pad(y, axis, (2, 2))
    pairs = padded.reshape(*y.shape[:axis], n + 2, 2, *y.shape[axis + 1 :])

    def output(offset: int) -> Array:
        """y[2k + offset] for every k."""
        start, parity = divmod(offset + 2, 2)
        return jax.lax.index_in_dim(jax.lax.slice_in_dim(pairs, start, start + n, 1, axis), parity, axis + 1, False)

    shares = [  # of x[k] in the upsampled samples 2k - 1, 2k, 2k + 1, 2k + 2
        np.where(k > 0, n - k, 0),
        2 * n - 1 - k,
        n + k,
        np.where(k < n - 1, k + 1, 0),
    ]
    weights = [_along(axis, share / (2 * n - 1), y) for share in shares]
    # Upsampled sample j of tap d is a part of output j + 1 - d.
    taps = [sum(_times(weight, output(i - d)) for i, weight in enumerate(weights)) for d in range(3)]
    return (jnp.stack(taps, axis=taps_axis).astype(y.dtype),)


upsample_shift_sum.defvjp(_upsample_shift_sum_forward, _upsample_shift_sum_backward)


def _along(axis: int, weights: np.ndarray, like: Array) -> np.ndarray:
    """Weights along an axis, shaped to broadcast, and in at least float32, in which they are applied."""
    return weights.astype(_at_least_float32(like.dtype)).reshape([-1 if i == axis else 1 for i in range(like.ndim)])


def _times(weights: np.ndarray, x: Array) -> Array:
    return x.astype(weights.dtype) * weights


def _shift(x: Array, axis: int, offset: int) -> Array:
    """y[k] = x[k + offset] along `axis`, zero outside; offset is -1 or 1."""
    start = 0 if offset < 0 else 1
    return jax.lax.slice_in_dim(_pad(x, axis, (1 - start, start)), start, start + x.shape[axis], axis=axis)


def append_everywhere(image: Float[Array, "B h w I"], vector: Float[Array, "B c"]) -> Float[Array, "B h w J"]:
    """Adds a vector's values as constant channels."""
    tiled = jnp.broadcast_to(vector[:, None, None], (*image.shape[:-1], vector.shape[-1]))
    return jnp.concatenate([image, tiled], axis=-1)


@jax.custom_vjp
def join_channels(a: Float[Array, "*n A"], b: Float[Array, "*n B"]) -> Float[Array, "*n C"]:
    """Concatenation along the last axis: b is computed into its place, where XLA would write it first and then copy."""
    room = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, b.shape[-1])])
    return jax.lax.dynamic_update_slice_in_dim(room, b, a.shape[-1], -1)


def _join_forward(a: Array, b: Array) -> tuple[Array, Array]:
    return join_channels(a, b), jnp.empty((0, a.shape[-1]))


def _join_backward(like_first: Array, joined: Array) -> tuple[Array, Array]:
    num_first = like_first.shape[-1]
    return joined[..., :num_first], joined[..., num_first:]


join_channels.defvjp(_join_forward, _join_backward)
