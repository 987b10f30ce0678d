"""Mixtures: targets, weights, levels."""

import jax.numpy as jnp
import numpy as np

from clipsep_jax.config import MixingConfig, SpectrogramConfig
from clipsep_jax.mixing import apply_gain, mix
from clipsep_jax.spectrogram import stft, warp

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


def test_silence_has_no_active_target():
    mixture = mix(jnp.zeros((1, 2, 8191)), SPECTROGRAM, MixingConfig())
    assert not mixture.targets.any()
    assert (mixture.magnitude > 0).all()


def test_gain_clips_at_full_scale():
    samples = jnp.array([[[-32768, 16384, 32767]]], jnp.int16)
    np.testing.assert_allclose(apply_gain(samples, jnp.array([[1.5]])), [[[-1, 0.75, 1]]])
