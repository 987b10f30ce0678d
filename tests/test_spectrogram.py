"""The signal path against librosa and PyTorch's grid sampling."""

import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import torch

from clipsep_jax.config import SpectrogramConfig
from clipsep_jax.spectrogram import (
    apply_masks,
    frequency_unwarp,
    frequency_warp,
    istft,
    log_warped_magnitude,
    stft,
    time_resample,
    unwarp,
    warp,
)

CONFIG = SpectrogramConfig()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:n_fft=1024 is too large")
@pytest.mark.parametrize("length", [65_535, 32_767, 40_000, 1024, 300, 255])
def test_stft_equals_librosa(length):
    waveform = noise(length)
    ours = np.asarray(stft(jnp.asarray(waveform), CONFIG))
    theirs = librosa.stft(waveform, n_fft=1024, hop_length=256, win_length=1024, pad_mode="constant")
    assert ours.shape == theirs.shape == (513, length // 256 + 1)
    largest = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * largest, rtol=0)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-6 * largest, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("length", [65_280, 65_535, 65_000])
def test_istft_equals_librosa_and_inverts(length):
    waveform = noise(2, 65_535)
    spectrum = stft(jnp.asarray(waveform), CONFIG)
    ours = np.asarray(istft(spectrum, CONFIG, length))
    theirs = librosa.istft(np.asarray(spectrum), hop_length=256, win_length=1024, length=length)
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max(), rtol=0)
    np.testing.assert_allclose(ours, waveform[:, :length], atol=2e-6)


def grid_sample(image: np.ndarray, num_rows: int, to_log: bool) -> np.ndarray:
    """The official warp: bilinear sampling of [F, T] with aligned corners, grid cast from float64 to float32."""
    y = np.linspace(-1, 1, num_rows)
    y = (np.power(21, (y + 1) / 2) - 11) / 10 if to_log else np.log(y * 10 + 11) / np.log(21) * 2 - 1
    x = np.linspace(-1, 1, image.shape[1])
    grid = np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(image)[None, None], torch.from_numpy(grid)[None], align_corners=True
    )
    return sampled[0, 0].numpy()


@pytest.mark.parametrize("num_frames", [256, 255, 31])
def test_warps_equal_grid_sample(num_frames):
    magnitude = np.abs(noise(513, num_frames)) * 100
    expected = grid_sample(magnitude, 256, to_log=True)
    np.testing.assert_allclose(warp(jnp.asarray(magnitude), CONFIG), expected, rtol=1e-5, atol=1e-5)
    mask = np.abs(noise(256, num_frames, seed=1))
    expected = grid_sample(mask, 513, to_log=False)
    np.testing.assert_allclose(unwarp(jnp.asarray(mask), CONFIG), expected, rtol=1e-5, atol=1e-6)


def test_masks_to_sound_equals_the_plain_way():
    """One mixture and one mask at a time: to linear frequency, times the spectrum, back to a waveform."""
    spectra = stft(jnp.asarray(noise(2, 8191)), CONFIG)
    masks = np.abs(noise(2, 3, 256, 32, seed=1))
    sounds = apply_masks(jnp.asarray(masks), spectra, CONFIG, 8191)
    assert sounds.shape == (2, 3, 8191)
    for b, n in np.ndindex(2, 3):
        linear = grid_sample(masks[b, n], 513, to_log=False)
        plain = librosa.istft(linear * np.asarray(spectra[b]), hop_length=256, win_length=1024, length=8191)
        np.testing.assert_allclose(sounds[b, n], plain, atol=1e-5)


def test_digital_silence_has_the_official_level():
    """Half silence, half loud: the time axis' rounding leaks into the silence, inside the logarithm."""
    magnitude = np.zeros((513, 256), np.float32)
    magnitude[:, :128] = 50
    expected = np.log(grid_sample(magnitude + np.float32(1e-10), 256, to_log=True))
    ours = np.asarray(log_warped_magnitude(jnp.asarray(magnitude), CONFIG))
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("num_frames", [1, 2, 31, 256, 1000, 4096])
def test_the_time_axis_is_sampled_at_frames_and_their_neighbours(num_frames):
    rows, columns = np.nonzero(time_resample(num_frames))
    assert np.abs(rows - columns).max() <= 1


def test_warp_matrices_have_two_taps_that_sum_to_one():
    for matrix in (frequency_warp(256, 513), frequency_unwarp(513, 256)):
        assert (np.count_nonzero(matrix, axis=1) <= 2).all()
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
