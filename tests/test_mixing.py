"""Mixtures: targets, weights, levels."""

import jax
import jax.numpy as jnp
import numpy as np

from clipsep_jax.config import MixingConfig, SpectrogramConfig
from clipsep_jax.mixing import (
    add_negatives,
    add_noise,
    apply_gain,
    draw_sounding,
    drop_closest,
    likeness_weight,
    mix,
    mix_up,
    pair_similarity,
    weigh_targets,
)
from clipsep_jax.spectrogram import stft, warp
from clipsep_jax.structures import Batch

SPECTROGRAM = SpectrogramConfig(num_samples=8191)


def sources(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (3, 2, 8191)).astype(np.float32)


def test_mixture_is_the_mean_of_the_sources_with_binary_targets():
    mixture = mix(jnp.asarray(sources()), SPECTROGRAM, MixingConfig())
    expected = warp(jnp.abs(stft(jnp.asarray(sources().mean(axis=1)), SPECTROGRAM)) + 1e-10, SPECTROGRAM)
    np.testing.assert_allclose(mixture.magnitude, expected, rtol=1e-4, atol=1e-5)
    single = warp(jnp.abs(stft(jnp.asarray(sources()[:, 1] / 2), SPECTROGRAM)), SPECTROGRAM)
    np.testing.assert_array_equal(mixture.targets[:, 1], np.asarray(single > 0.5 * mixture.magnitude))


def test_weight_is_the_clipped_log_of_the_magnitude_or_one():
    quiet = sources() * np.array([1, 1e-6, 1], np.float32)[:, None, None]
    mixture = mix(jnp.asarray(quiet), SPECTROGRAM, MixingConfig())
    assert mixture.weight.min() == np.float32(1e-3)
    loud = np.asarray(mixture.magnitude[0])
    np.testing.assert_allclose(mixture.weight[0], np.clip(np.log1p(loud), 1e-3, 10), rtol=1e-5)
    assert (mix(jnp.asarray(quiet), SPECTROGRAM, MixingConfig(weighted=False)).weight == 1).all()


def test_a_target_may_be_of_several_sources_together():
    """The mixture is the same; the targets are those of the sums."""
    four = jnp.asarray(np.random.default_rng(3).uniform(-1, 1, (2, 4, 8191)).astype(np.float32))
    single, double = (mix(four, SPECTROGRAM, MixingConfig(sources_per_target=n)) for n in (1, 2))
    assert (single.targets.shape[1], double.targets.shape[1]) == (4, 2)
    np.testing.assert_allclose(double.magnitude, single.magnitude, rtol=1e-4, atol=1e-5)
    pairs = mix(jnp.stack([four[:, :2].sum(axis=1), four[:, 2:].sum(axis=1)], axis=1) / 2, SPECTROGRAM, MixingConfig())
    np.testing.assert_array_equal(double.targets, pairs.targets)


def test_ratio_targets_are_shares_even_in_silence():
    quiet = jnp.asarray(sources()).at[0].set(0)
    targets = mix(quiet, SPECTROGRAM, MixingConfig(targets="ratio")).targets
    assert not targets[0].any()
    np.testing.assert_allclose(targets[1:].sum(axis=1), 1, rtol=1e-5)
    magnitudes = warp(jnp.abs(stft(quiet / 2, SPECTROGRAM)), SPECTROGRAM)
    np.testing.assert_allclose(targets[1:], (magnitudes / magnitudes.sum(axis=1, keepdims=True))[1:], rtol=1e-4)


def test_silence_has_no_active_target():
    mixture = mix(jnp.zeros((1, 2, 8191)), SPECTROGRAM, MixingConfig())
    assert not mixture.targets.any()
    assert (mixture.magnitude > 0).all()


def test_gain_clips_at_full_scale():
    samples = jnp.array([[[-32768, 16384, 32767]]], jnp.int16)
    np.testing.assert_allclose(apply_gain(samples, jnp.array([[1.5]])), [[[-1, 0.75, 1]]])


def pairs_of_cosine(*cosines: float) -> Batch:
    """Examples whose two queries have these cosines; example i's sources hold the number i."""
    angles = np.arccos(np.array(cosines))
    query = np.stack([np.stack([np.ones_like(angles), np.zeros_like(angles)], -1),
                      3 * np.stack([np.cos(angles), np.sin(angles)], -1)], axis=1)  # fmt: skip
    sources = np.broadcast_to(np.arange(len(cosines))[:, None, None], (len(cosines), 2, 4)).astype(np.int16)
    return Batch(jnp.asarray(sources), jnp.ones((len(cosines), 2)), jnp.asarray(query, jnp.float32))


def test_the_most_similar_pairs_are_dropped_once_active():
    batch = pairs_of_cosine(0.9, -0.5, 0.95, 0.2)
    np.testing.assert_allclose(pair_similarity(batch.query), [0.9, -0.5, 0.95, 0.2], atol=1e-5)
    assert drop_closest(batch, 3, jnp.array(True)).sources[:, 0, 0].tolist() == [1, 3, 0]
    assert drop_closest(batch, 3, jnp.array(False)).sources[:, 0, 0].tolist() == [0, 1, 2]


def test_similar_pairs_weigh_less():
    query = pairs_of_cosine(-1.0, 0.5, 0.75, 0.99999).query
    np.testing.assert_allclose(likeness_weight(query, jnp.array(True)), [1, 1, 0.5, 0], atol=1e-3)
    assert (likeness_weight(query, jnp.array(False)) == 1).all()


def test_the_first_clips_sound_as_many_as_are_drawn():
    key = jax.random.key(3)
    sounds = np.asarray(draw_sounding(key, (300, 4), 2, 3))
    counts = sounds.sum(axis=1)
    np.testing.assert_array_equal(sounds, np.arange(4) < counts[:, None])
    assert set(counts.tolist()) == {2, 3}
    assert 0.4 < (counts == 2).mean() < 0.6
    np.testing.assert_array_equal(sounds, draw_sounding(key, (300, 4), 2, 3))
    for same in (draw_sounding(None, (5, 4), 2, 3), draw_sounding(key, (5, 4), 3, 3)):
        np.testing.assert_array_equal(same, np.broadcast_to(np.arange(4) < 3, (5, 4)))


def test_absent_targets_have_their_weight_and_the_mean_is_one():
    sounds = jnp.array([[True, True, False], [True, True, True]])
    np.testing.assert_allclose(weigh_targets(sounds, 0.5), [[1.2, 1.2, 0.6], [1, 1, 1]], rtol=1e-6)
    np.testing.assert_allclose(weigh_targets(sounds, 0.0), [[1.5, 1.5, 0], [1, 1, 1]], rtol=1e-6)


def test_mixed_up_queries_lie_between_their_parts_and_keep_their_length():
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(50, 2, 3, 5)).astype(np.float32) * np.array([1, 2, 3], np.float32)[:, None]
    mixed = np.asarray(mix_up(jnp.asarray(queries), jax.random.key(0)))
    lengths = np.linalg.norm(queries, axis=-1)
    units = queries / lengths[..., None]
    for example in range(50):
        for source in range(2):
            weights = np.linalg.lstsq(units[example, source].T, mixed[example, source], rcond=None)[0]
            assert (weights > 0).all()
            np.testing.assert_allclose(weights.sum(), lengths[example, source].mean(), rtol=1e-4)
    silent = queries * np.array([1, 0, 1], np.float32)[:, None]  # as a centred text of records with one label
    assert np.isfinite(mix_up(jnp.asarray(silent), jax.random.key(0))).all()
    same = np.broadcast_to(queries[:, :, :1], queries.shape)
    np.testing.assert_allclose(mix_up(jnp.asarray(same), jax.random.key(0)), queries[:, :, 0], rtol=1e-4, atol=1e-6)


def test_noise_is_a_share_of_the_query():
    query = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 4_000)), jnp.float32)
    noise = np.asarray(add_noise(query, jax.random.key(1), 0.5) - query)
    share = np.linalg.norm(noise, axis=-1) / np.linalg.norm(query, axis=-1)
    np.testing.assert_allclose(share, 0.5, rtol=0.1)
    assert abs(noise.mean()) < 0.02


def test_negatives_are_the_other_sources_and_some_are_left_out():
    query = np.random.default_rng(0).normal(size=(400, 3, 2)).astype(np.float32)
    both = np.asarray(add_negatives(jnp.asarray(query), jax.random.key(0)))
    positive, negative = both[..., :2], both[..., 2:]
    others = (query[:, [1, 2, 0]] + query[:, [2, 0, 1]]) / 2
    has_positive, has_negative = positive.any(axis=(1, 2)), negative.any(axis=(1, 2))
    np.testing.assert_array_equal(positive[has_positive], query[has_positive])
    np.testing.assert_allclose(negative[has_negative], others[has_negative], rtol=1e-4, atol=1e-5)
    assert 0.4 < (has_positive & has_negative).mean() < 0.6
    assert 0.15 < (~has_positive).mean() < 0.35
    assert 0.15 < (~has_negative).mean() < 0.35
    assert (has_positive | has_negative).all()


def test_sources_are_divided_by_how_many_sound_at_most():
    """So that levels are those of mixtures to score, which hold no silent sources."""
    two = jnp.asarray(sources())
    three = jnp.concatenate([two, jnp.zeros_like(two[:, :1])], axis=1)
    plain, with_silent = mix(two, SPECTROGRAM, MixingConfig()), mix(three, SPECTROGRAM, MixingConfig(most_sounding=2))
    np.testing.assert_allclose(with_silent.magnitude, plain.magnitude, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(with_silent.targets[:, :2], plain.targets)
    assert not with_silent.targets[:, 2].any()
