"""The encoder of example sounds, trained together with the separator (SoundFilter: Gfeller et al., 2020)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.layers import BatchNorm, DownConv

_NUM_LEVELS = 5
_SLOPE = 0.2
LEAST_BINS = 2**_NUM_LEVELS


class AudioEncoder(nnx.Module):
    """Turns the spectrogram of an example into a query: convolutions that halve it, the mean over time, a projection.

    Frequencies keep their places, as pitch tells sounds apart. The mean of the spectrogram is subtracted, so that the
    loudness of an example does not matter.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        widths = [config.width * min(2**level, 4) for level in range(_NUM_LEVELS)]
        ends = zip([1, *widths], widths, strict=False)
        self.convs = nnx.List([DownConv(a, b, init_std=1 / (4 * a**0.5), rngs=rngs) for a, b in ends])
        self.norms = nnx.List([BatchNorm(width, rngs=rngs) for width in widths])
        size = widths[-1] * (config.num_bins >> _NUM_LEVELS)
        self.projection = nnx.Linear(size, config.query_size, rngs=rngs)

    def __call__(self, log_magnitude: Float[Array, "B K T"]) -> Float[Array, "B Q"]:
        """Queries of examples, from the log of their warped magnitudes."""
        x = (log_magnitude - log_magnitude.mean(axis=(1, 2), keepdims=True))[..., None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(_even(x)), slope=_SLOPE)
        return self.projection(x.mean(axis=2).reshape(len(x), -1))


def _even(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """With a frame of zeros more where their number is odd."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, 0)))
