"""The U-Net with blocks that connect all frequencies."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.layers import BatchNorm
from clipsep_jax.models.unet import UNet, level_widths

_BOTTLENECK = 8  # by which the hidden layer is smaller than the number of bins
_LEAST_HIDDEN = 4


class FrequencyBlock(nnx.Module):
    """Two fully connected layers along the frequencies, added to their input; nothing at first.

    The same for every channel and frame: what a convolution joins only after many levels, such as a sound's harmonics,
    meets at once (time-distributed fully connected layers: Choi et al., 2020, "Investigating U-Nets with various
    intermediate blocks").
    """

    def __init__(self, num_bins: int, num_channels: int, *, rngs: nnx.Rngs):
        hidden = max(_LEAST_HIDDEN, num_bins // _BOTTLENECK)
        self.first = nnx.Linear(num_bins, hidden, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(num_channels, rngs=rngs)
        self.second = nnx.Linear(hidden, num_bins, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "B K T C"]) -> Float[Array, "B K T C"]:
        hidden = jnp.einsum("bktc,kh->bhtc", x, self.first.kernel[...].astype(x.dtype))
        hidden = self.norm(hidden, slope=0.0)
        return x + jnp.einsum("bhtc,hk->bktc", hidden, self.second.kernel[...].astype(x.dtype))


class TdfUNet(UNet):
    """A `UNet` with a `FrequencyBlock` after each level of the encoder."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, **how: Any):
        super().__init__(config, rngs=rngs, **how)
        widths = enumerate(level_widths(config), 1)
        blocks = [FrequencyBlock(config.num_bins >> level, width, rngs=rngs) for level, width in widths]
        self.refinements = nnx.List(blocks)
