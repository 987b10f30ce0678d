"""Sources -> mixture, mask targets and loss weights. Targets come from here alone."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int16

from clipsep_jax.config import MixingConfig, SpectrogramConfig
from clipsep_jax.spectrogram import stft, warp
from clipsep_jax.structures import Mixture


def apply_gain(sources: Int16[Array, "B N L"], gain: Float[Array, "B N"]) -> Float[Array, "B N L"]:
    """16-bit samples to [-1, 1], times their gain, clipped."""
    return jnp.clip(sources.astype(gain.dtype) * (gain / 32768)[..., None], -1, 1)


def binary_masks(magnitudes: Float[Array, "B N K T"], mixture: Float[Array, "B K T"]) -> Bool[Array, "B N K T"]:
    """True where a source has more than half of the mixture's magnitude."""
    return magnitudes > 0.5 * mixture[:, None]


def mix(sources: Float[Array, "B N L"], spectrogram: SpectrogramConfig, config: MixingConfig) -> Mixture:
    """Divides every source by N, sums them, and takes magnitudes, targets and weights on the log-frequency grid."""
    spectra = stft(sources / sources.shape[1], spectrogram)
    magnitude = warp(jnp.abs(spectra.sum(axis=1)) + 1e-10, spectrogram)
    targets = binary_masks(warp(jnp.abs(spectra), spectrogram), magnitude)
    weight = jnp.clip(jnp.log1p(magnitude), 1e-3, 10) if config.weighted else jnp.ones_like(magnitude)
    return Mixture(magnitude, targets.astype(magnitude.dtype), weight)
