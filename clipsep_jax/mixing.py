"""Sources -> mixture, mask targets and loss weights. Targets are made only here."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int16

from clipsep_jax.config import MixingConfig, SpectrogramConfig
from clipsep_jax.spectrogram import stft, warp
from clipsep_jax.structures import Batch, Mixture


def apply_gain(sources: Int16[Array, "B N L"], gain: Float[Array, "B N"]) -> Float[Array, "B N L"]:
    """16-bit samples to [-1, 1], times their gain, clipped."""
    return jnp.clip(sources.astype(gain.dtype) * (gain / 32768)[..., None], -1, 1)


def binary_masks(magnitudes: Float[Array, "B N K T"], mixture: Float[Array, "B K T"]) -> Bool[Array, "B N K T"]:
    """True where a source has more than half of the mixture's magnitude."""
    return magnitudes > 0.5 * mixture[:, None]


def ratio_masks(magnitudes: Float[Array, "B N K T"]) -> Float[Array, "B N K T"]:
    """Share of each source in the sum of the sources' magnitudes; 0 where all are silent.

    The official code divides by a sum over the batch, which is a fault.
    """
    total = magnitudes.sum(axis=1, keepdims=True)
    return jnp.where(total > 0, magnitudes / jnp.where(total > 0, total, 1), 0)


def pair_similarity(query: Float[Array, "B 2 Q"]) -> Float[Array, " B"]:
    """Cosine of the query embeddings of each example's two sources."""
    unit = query / jnp.linalg.norm(query, axis=-1, keepdims=True)
    return jnp.sum(unit[:, 0] * unit[:, 1], axis=-1)


def drop_closest(batch: Batch, num_kept: int, active: Bool[Array, ""]) -> Batch:
    """The `num_kept` examples whose sources are least alike; while not active, the first ones."""
    order = jnp.argsort(pair_similarity(jnp.asarray(batch.query)))
    kept = jnp.where(active, order, jnp.arange(len(order)))[:num_kept]
    return jax.tree.map(lambda x: x[kept], batch)


def likeness_weight(query: Float[Array, "B 2 Q"], active: Bool[Array, ""]) -> Float[Array, " B"]:
    """Weight of each example by how alike its sources are: 1 up to a cosine of 0.5, falling to 0 at 1."""
    weight = jax.nn.relu(1 - 2 * jax.nn.relu(pair_similarity(query) - 0.5))
    return jnp.where(active, weight, 1.0)


def mix(sources: Float[Array, "B N L"], spectrogram: SpectrogramConfig, config: MixingConfig) -> Mixture:
    """Divides every source by N, sums them, and takes magnitudes, targets and weights on the log-frequency grid.

    A target is made of `config.sources_per_target` sources together.
    """
    b, n, length = sources.shape
    together = (sources / n).reshape(b, n // config.sources_per_target, config.sources_per_target, length).sum(axis=2)
    spectra = stft(together, spectrogram)
    magnitude = warp(jnp.abs(spectra.sum(axis=1)) + 1e-10, spectrogram)
    magnitudes = warp(jnp.abs(spectra), spectrogram)
    targets = binary_masks(magnitudes, magnitude) if config.targets == "binary" else ratio_masks(magnitudes)
    weight = jnp.clip(jnp.log1p(magnitude), 1e-3, 10) if config.weighted else jnp.ones_like(magnitude)
    return Mixture(magnitude, targets.astype(magnitude.dtype), weight)
