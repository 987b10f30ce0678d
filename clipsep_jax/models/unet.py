"""The U-Net on the log-frequency spectrogram (Zhao et al., 2018, as CLIPSep uses it)."""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.layers import BatchNorm, DownConv, UpConv, append_everywhere, join_channels, leaky_relu


def level_widths(config: ModelConfig) -> list[int]:
    """Channels of each level of the encoder."""
    return [config.width * min(2**i, 8) for i in range(config.num_levels)]


class UNet(nnx.Module):
    """Encoder and decoder with skip connections, without the last convolution.

    Level i halves the sides and has min(2**i, 8) * width channels. The outermost and the innermost down convolution
    have no BatchNorm, nor has the last convolution, which belongs to the fusion with the queries.

    Attributes:
        num_features: channels of the output.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_in: int = 1,
        num_condition: int = 0,
        dtype: Any = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """`num_condition` channels join at the bottleneck; `dtype` and `remat` as in `CLIPSep`."""
        widths = level_widths(config)
        last = config.num_levels - 1
        std = config.init_std
        # Level i of the decoder reads its inner level's output and, unless innermost, the skip of the same width.
        decoded = [2 * width for width in widths[:last]] + [widths[last] + num_condition]
        self.dtype, self.remat = dtype, remat
        self.input_norm = BatchNorm(num_in, rngs=rngs)
        self.down = nnx.List(
            [DownConv(a, b, init_std=std, rngs=rngs) for a, b in zip([num_in, *widths], widths, strict=False)]
        )
        self.down_norm = nnx.List([BatchNorm(widths[i], rngs=rngs) for i in range(1, last)])
        self.up = nnx.List([UpConv(decoded[i], widths[i - 1], init_std=std, rngs=rngs) for i in range(1, last + 1)])
        self.up_norm = nnx.List([BatchNorm(widths[i - 1], rngs=rngs) for i in range(1, last + 1)])
        self.num_features = decoded[0]

    def __call__(
        self, log_magnitude: Float[Array, "B K T I"], condition: Float[Array, "B c"] | None = None
    ) -> Float[Array, "B k t C"]:
        """Features at half resolution: what the last convolution takes."""
        skips = self._encode(self.input_norm(log_magnitude).astype(self.dtype or log_magnitude.dtype))
        x = jax.nn.relu(skips.pop())
        if condition is not None:
            x = append_everywhere(x, jax.nn.relu(condition.astype(x.dtype)))
        decode = self._level(_decode_level)
        for level in reversed(range(1, len(self.down))):
            with jax.named_scope(f"up_{level}"):
                decoded = decode(self.up[level - 1], self.up_norm[level - 1], x)
                x = join_channels(jax.nn.relu(skips.pop()), decoded)
        return x

    def _encode(self, x: Float[Array, "B K T I"]) -> list[Array]:
        outputs: list[Array] = []
        encode = self._level(_encode_level)
        for level, (down, norm) in enumerate(zip_longest(self.down, [None, *self.down_norm])):
            with jax.named_scope(f"down_{level}"):
                outputs.append(encode(down, norm, outputs[-1]) if outputs else _encode_level(down, norm, x))
        return outputs

    def _level(self, function: Callable[..., Array]) -> Callable[..., Array]:
        return nnx.remat(function) if self.remat else function


def _encode_level(down: DownConv, norm: BatchNorm | None, x: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
    y = down(x)
    return leaky_relu(y, 0.2) if norm is None else norm(y, slope=0.2)


def _decode_level(up: UpConv, norm: BatchNorm, x: Float[Array, "B h w C"]) -> Float[Array, "B H W c"]:
    return norm(up(x), slope=0.0)
