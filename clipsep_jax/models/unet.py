"""The U-Net on the log-frequency spectrogram (Zhao et al., 2018, as CLIPSep uses it)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.layers import BatchNorm, DownConv, UpConv, append_everywhere, join_channels, leaky_relu

Film = tuple[Float[Array, "B D"], Float[Array, "B D"]]  # by how much channels are scaled and shifted


class Modulation(nnx.Module):
    """A vector's scale and shift of the channels of a block; none at first."""

    def __init__(self, size: int, num_channels: int, *, rngs: nnx.Rngs):
        self.projection = nnx.Linear(size, 2 * num_channels, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, vector: Float[Array, "B m"]) -> Film:
        scale, shift = jnp.split(self.projection(vector), 2, axis=-1)
        return scale, shift


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
        num_modulation: int = 0,
        dtype: Any = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the network; `dtype` and `remat` as in `CLIPSep`.

        Args:
            num_condition: channels that join at the bottleneck.
            num_modulation: size of a vector by which every block with a BatchNorm is scaled and shifted after it.
        """
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
        modulated = [*widths[1:last], *widths[:last]] if num_modulation else []
        self.modulations = nnx.List([Modulation(num_modulation, width, rngs=rngs) for width in modulated])
        self.refinements: nnx.List = nnx.List([])  # of the encoder's levels, in networks that have some
        self.num_features = decoded[0]

    def __call__(
        self,
        log_magnitude: Float[Array, "B K T I"],
        condition: Float[Array, "B c"] | None = None,
        modulation: Float[Array, "B m"] | None = None,
    ) -> Float[Array, "B k t C"]:
        """Features at half resolution: what the last convolution takes."""
        films = [film(modulation) for film in self.modulations] if modulation is not None else []
        num_encoded = len(self.down_norm) if films else 0
        skips = self._encode(
            self.input_norm(log_magnitude).astype(self.dtype or log_magnitude.dtype), films[:num_encoded]
        )
        x = jax.nn.relu(skips.pop())
        if condition is not None:
            x = append_everywhere(x, jax.nn.relu(condition.astype(x.dtype)))
        decode = self._level(_decode_level)
        for level in reversed(range(1, len(self.down))):
            with jax.named_scope(f"up_{level}"):
                film = films[num_encoded + level - 1] if films else None
                decoded = decode(self.up[level - 1], self.up_norm[level - 1], x, film)
                x = join_channels(jax.nn.relu(skips.pop()), decoded)
        return x

    def _encode(self, x: Float[Array, "B K T I"], films: list[tuple[Array, Array]]) -> list[Array]:
        outputs: list[Array] = []
        encode = self._level(_encode_level)
        for level, down in enumerate(self.down):
            number = level - 1 if 0 < level < len(self.down) - 1 else None  # of the level's norm
            norm = None if number is None else self.down_norm[number]
            film = films[number] if films and number is not None else None
            with jax.named_scope(f"down_{level}"):
                y = encode(down, norm, outputs[-1], film) if outputs else _encode_level(down, norm, x, film)
                outputs.append(self.refinements[level](y) if self.refinements else y)
        return outputs

    def _level(self, function: Callable[..., Array]) -> Callable[..., Array]:
        return nnx.remat(function) if self.remat else function


def _encode_level(
    down: DownConv, norm: BatchNorm | None, x: Float[Array, "B H W C"], film: Film | None
) -> Float[Array, "B h w c"]:
    y = down(x)
    return leaky_relu(y, 0.2) if norm is None else _normalised(norm, y, film, 0.2)


def _decode_level(
    up: UpConv, norm: BatchNorm, x: Float[Array, "B h w C"], film: Film | None
) -> Float[Array, "B H W c"]:
    return _normalised(norm, up(x), film, 0.0)


def _normalised(
    norm: BatchNorm, x: Float[Array, "B H W C"], film: Film | None, slope: float
) -> Float[Array, "B H W C"]:
    """BatchNorm, the query's scale and shift where there are some, then a leaky ReLU."""
    if film is None:
        return norm(x, slope=slope)
    scale, shift = (vector[:, None, None].astype(x.dtype) for vector in film)
    return leaky_relu((1 + scale) * norm(x) + shift, slope)
