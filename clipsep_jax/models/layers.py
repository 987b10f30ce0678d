"""The exact fast layers: the same numbers as the plain form, from fewer and larger matrix products.

The plain forms (upsample, then convolve) are the references in the tests.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


class BatchNorm(nnx.BatchNorm):
    """PyTorch's BatchNorm in training: statistics over batch and pixels, momentum 0.1 there is 0.9 here.

    The running variance is the biased one; PyTorch keeps the unbiased one (a stated departure of n / (n - 1)).
    """

    def __init__(self, num_features: int, *, rngs: nnx.Rngs):
        super().__init__(
            num_features,
            momentum=0.9,
            epsilon=1e-5,
            use_fast_variance=False,
            scale_init=_around_one,
            rngs=rngs,
        )


def _around_one(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class DownConv(nnx.Module):
    """4 x 4 convolution of stride 2 and padding 1, without bias; halves even sides."""

    def __init__(self, num_in: int, num_out: int, *, init_std: float, rngs: nnx.Rngs):
        kernel = init_std * jax.random.normal(rngs.params(), (4, 4, num_in, num_out))
        self.kernel = nnx.Param(kernel)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        return strided_conv(x, self.kernel[...])


class UpConv(nnx.Module):
    """Bilinear upsampling by 2 with aligned corners, then a 3 x 3 convolution of padding 1."""

    def __init__(self, num_in: int, num_out: int, *, init_std: float, use_bias: bool = False, rngs: nnx.Rngs):
        self.kernel = nnx.Param(init_std * jax.random.normal(rngs.params(), (3, 3, num_in, num_out)))
        bound = 1 / np.sqrt(9 * num_in)  # PyTorch's default for a convolution's bias
        bias = jax.random.uniform(rngs.params(), (num_out,), minval=-bound, maxval=bound) if use_bias else None
        self.bias = nnx.Param(bias) if bias is not None else nnx.data(None)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W c"]:
        y = upsample_conv(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]


def strided_conv(x: Float[Array, "B H W C"], kernel: Float[Array, "4 4 C c"]) -> Float[Array, "B h w c"]:
    """4 x 4 convolution of stride 2, padding 1, of even sides, as one matrix product over 2 x 2 blocks.

    Space-to-depth turns it into a 2 x 2 convolution of stride 1.
    """
    b, height, width, channels = x.shape
    h, w = height // 2, width // 2
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    blocks = x.reshape(b, h + 1, 2, w + 1, 2, channels).transpose(0, 1, 3, 2, 4, 5).reshape(b, h + 1, w + 1, -1)
    corners = [blocks[:, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)]
    taps = kernel.reshape(2, 2, 2, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    return jnp.concatenate(corners, axis=-1) @ taps.reshape(16 * channels, -1)


def upsample_conv(x: Float[Array, "B h w C"], kernel: Float[Array, "3 3 C c"]) -> Float[Array, "B H W c"]:
    """conv3x3(upsample2(x)) computed at the low resolution.

    Bilinear interpolation is linear and acts on every channel alike, so the nine taps of the kernel are applied
    first, in one matrix product on a quarter of the pixels; what follows are two-tap blends, width first.
    """
    num_out = kernel.shape[-1]
    flat = kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)
    return blend_taps((x @ flat).reshape(*x.shape[:-1], 3, 3, num_out))


def blend_taps(taps: Float[Array, "B h w 3 3 c"]) -> Float[Array, "B H W c"]:
    """Upsamples each of the nine tap images, shifts it by its tap, and sums."""
    rows = upsample_shift_sum(taps, axis=2, taps_axis=4)  # [B h W 3 c]
    return upsample_shift_sum(rows, axis=1, taps_axis=3)


def upsample_shift_sum(x: Array, axis: int, taps_axis: int) -> Array:
    """Along `axis`: sum over the taps d = 0, 1, 2 of upsample2(x_d) shifted by d - 1, zeros outside.

    From n to 2n with aligned corners: output 2k is a x[k-1] + (1-a) x[k] with a = k / (2n-1), output 2k+1 is
    (1-b) x[k] + b x[k+1] with b = (n-1-k) / (2n-1). `axis` comes before `taps_axis`, which disappears.
    """
    n = x.shape[axis]
    before, after = _blend_weights(n, [n if i == axis else 1 for i in range(x.ndim - 1)], x.dtype)
    taps = [jax.lax.index_in_dim(x, d, taps_axis, keepdims=False) for d in range(3)]

    def even(tap: Array) -> Array:
        return before * _shift(tap, axis, -1) + (1 - before) * tap

    def odd(tap: Array) -> Array:
        return (1 - after) * tap + after * _shift(tap, axis, 1)

    at_even = _shift(odd(taps[0]), axis, -1) + even(taps[1]) + odd(taps[2])
    at_odd = even(taps[0]) + odd(taps[1]) + _shift(even(taps[2]), axis, 1)
    joined = jnp.stack([at_even, at_odd], axis=axis + 1)
    return joined.reshape(*joined.shape[:axis], 2 * n, *joined.shape[axis + 2 :])


def _blend_weights(n: int, shape: list[int], dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the neighbour before (even outputs) and after (odd outputs), shaped to broadcast."""
    k = np.arange(n)
    before, after = k / (2 * n - 1), (n - 1 - k) / (2 * n - 1)
    return before.astype(dtype).reshape(shape), after.astype(dtype).reshape(shape)


def _shift(x: Array, axis: int, offset: int) -> Array:
    """y[k] = x[k + offset] along `axis`, zero outside; offset is -1 or 1."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (1, 0) if offset < 0 else (0, 1)
    start = 0 if offset < 0 else 1
    return jax.lax.slice_in_dim(jnp.pad(x, widths), start, start + x.shape[axis], axis=axis)
