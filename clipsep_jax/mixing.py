"""Sources -> mixture, mask targets and loss weights, and what training does to queries. Targets are made only here."""

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


def draw_sounding(key: Array | None, shape: tuple[int, int], fewest: int, most: int) -> Bool[Array, "B N"]:
    """Which of N clips sound in each of B mixtures: the first ones, `fewest` to `most`, or without a key `most`."""
    num_examples, num_clips = shape
    counts = jnp.full(num_examples, most)
    if key is not None and fewest < most:
        counts = jax.random.randint(key, (num_examples,), fewest, most + 1)
    return jnp.arange(num_clips)[None] < counts[:, None]


def weigh_targets(sounds: Bool[Array, "B S"], absent_weight: float) -> Float[Array, "B S"]:
    """1 for targets that sound and `absent_weight` for the others, scaled to a mean of 1 in each example."""
    weight = jnp.where(sounds, 1.0, absent_weight)
    return weight / weight.mean(axis=1, keepdims=True)


def mix_up(queries: Float[Array, "B N V Q"], key: Array) -> Float[Array, "B N Q"]:
    """One query out of several for the same source (OmniSep: Cheng et al., 2025, query mix-up).

    The sum of w_v q_v / |q_v|, with w uniform and scaled to a sum of 1; times the mean of |q_v|, so that queries keep
    their length.
    """
    weight = jax.random.uniform(key, queries.shape[:3], queries.dtype)
    weight = weight / weight.sum(axis=-1, keepdims=True)
    length = jnp.linalg.norm(queries, axis=-1)
    least = jnp.finfo(queries.dtype).tiny  # a centred text of records with one label is zero
    return jnp.einsum("bnv,bnvq->bnq", weight / jnp.maximum(length, least), queries) * length.mean(axis=-1)[..., None]


def add_noise(query: Float[Array, "B N *V Q"], key: Array, share: float) -> Float[Array, "B N *V Q"]:
    """Adds a normal vector, whose mean square is that of the query times `share` squared."""
    scale = share * jnp.linalg.norm(query, axis=-1, keepdims=True) / query.shape[-1] ** 0.5
    return query + scale * jax.random.normal(key, query.shape, query.dtype)


def add_negatives(query: Float[Array, "B N Q"], key: Array) -> Float[Array, "B N P"]:
    """Beside each query the mean of those of the other sources, as what is to be left out: P = 2 Q.

    A quarter of the examples keeps the query alone, a quarter the negative one alone, half keep both (CLAPSep: Ma et
    al., 2024); zeros stand for what is not kept.
    """
    others = (query.sum(axis=1, keepdims=True) - query) / (query.shape[1] - 1)
    draw = jax.random.uniform(key, (len(query), 1, 1))
    return jnp.concatenate([jnp.where(draw < 0.25, 0, query), jnp.where(draw > 0.75, 0, others)], axis=-1)


def mix(sources: Float[Array, "B N L"], spectrogram: SpectrogramConfig, config: MixingConfig) -> Mixture:
    """Divides every source by how many sound at most, sums them, and takes magnitudes, targets and weights.

    A target is made of `config.sources_per_target` sources together.
    """
    b, n, length = sources.shape
    together = (
        (sources / (config.most_sounding or n))
        .reshape(b, n // config.sources_per_target, config.sources_per_target, length)
        .sum(axis=2)
    )
    spectra = stft(together, spectrogram)
    magnitude = warp(jnp.abs(spectra.sum(axis=1)) + 1e-10, spectrogram)
    magnitudes = warp(jnp.abs(spectra), spectrogram)
    targets = binary_masks(magnitudes, magnitude) if config.targets == "binary" else ratio_masks(magnitudes)
    weight = jnp.clip(jnp.log1p(magnitude), 1e-3, 10) if config.weighted else jnp.ones_like(magnitude)
    return Mixture(magnitude, targets.astype(magnitude.dtype), weight)
