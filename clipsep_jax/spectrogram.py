"""STFT, inverse STFT and the log-frequency warp, as pure functions of arrays on the device.

The numbers are those of librosa's `stft(..., center=True, pad_mode="constant")` with a periodic Hann window, and of the
official code's bilinear grid sampling with aligned corners.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Float32

from clipsep_jax.config import SpectrogramConfig
from clipsep_jax.structures import AnyArray

_WARP_BASE = 21.0  # the official warp: linear = (21**u - 1) / 20 with both in [0, 1]


def hann_window(size: int) -> np.ndarray:
    """The periodic Hann window, float32 of shape [size]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def _along_last(values: AnyArray, like: Array) -> Array:
    """Values along the last axis, in the shape and the precision of `like`."""
    return jnp.broadcast_to(jnp.asarray(values, like.dtype), like.shape)


def _split_into_hops(signal: Array, config: SpectrogramConfig) -> Array:
    """[*b L'] -> overlapping frames [*b T fft_size], built from whole hops so that nothing is gathered."""
    hop, overlap = config.hop_samples, config.fft_size // config.hop_samples
    hops = signal.reshape(*signal.shape[:-1], -1, hop)
    num_frames = hops.shape[-2] - overlap + 1
    parts = [hops[..., i : i + num_frames, :] for i in range(overlap)]
    return jnp.concatenate(parts, axis=-1)


def stft(waveform: Float[Array, "*b L"], config: SpectrogramConfig) -> Complex[Array, "*b F T"]:
    """Short-time Fourier transform of centred frames with zero padding; T = L // hop + 1."""
    length, half = waveform.shape[-1], config.fft_size // 2
    num_frames = length // config.hop_samples + 1
    padded_length = (num_frames - 1) * config.hop_samples + config.fft_size
    padding = [(0, 0)] * (waveform.ndim - 1) + [(half, max(0, padded_length - half - length))]
    return stft_of_frames(jnp.pad(waveform, padding)[..., :padded_length], config)


def stft_of_frames(signal: Float[Array, "*b L"], config: SpectrogramConfig) -> Complex[Array, "*b F T"]:
    """Fourier transforms of the frames that lie within a signal of hop * (T - 1) + fft_size samples."""
    frames = _split_into_hops(signal, config)
    spectrum = jnp.fft.rfft(frames * _along_last(hann_window(config.fft_size), frames))
    return jnp.swapaxes(spectrum, -1, -2)


def istft(spectrum: Complex[Array, "*b F T"], config: SpectrogramConfig, length: int) -> Float[Array, "*b {length}"]:
    """Inverse of `stft`: windowed overlap-add, divided by the sum of the squared windows.

    Samples that no frame reaches are zero.

    Args:
        spectrum: as from `stft`.
        config: the same as for `stft`.
        length: samples to return; the natural length is hop * (T - 1).
    """
    half = config.fft_size // 2
    summed = overlap_added(spectrum, config)[..., half:]
    summed = summed / _along_last(divisors(squares_added(spectrum.shape[-1], config)[half:]), summed)
    missing = max(0, length - summed.shape[-1])
    return jnp.pad(summed, [(0, 0)] * (summed.ndim - 1) + [(0, missing)])[..., :length]


def overlap_added(spectrum: Complex[Array, "*b F T"], config: SpectrogramConfig) -> Float[Array, "*b L"]:
    """The windowed frames added up, not yet divided by `squares_added`: hop * (T - 1) + fft_size samples."""
    frames = jnp.fft.irfft(jnp.swapaxes(spectrum, -1, -2), n=config.fft_size)
    return _overlap_add(frames * _along_last(hann_window(config.fft_size), frames), config.hop_samples)


def squares_added(num_frames: int, config: SpectrogramConfig) -> Float32[np.ndarray, " L"]:
    """The squared windows of `overlap_added`, added up where they lie."""
    total = np.zeros((num_frames - 1) * config.hop_samples + config.fft_size, np.float32)
    parts = (hann_window(config.fft_size) ** 2).reshape(-1, config.hop_samples)
    for number, part in enumerate(parts):
        total[number * config.hop_samples :][: num_frames * config.hop_samples] += np.tile(part, num_frames)
    return total


def divisors(squares: Float32[np.ndarray, " L"]) -> Float32[np.ndarray, " L"]:
    """What sums of windowed frames are divided by: one where no frame reaches."""
    return np.where(squares > np.finfo(np.float32).tiny, squares, np.float32(1))


def _overlap_add(frames: Array, hop: int) -> Array:
    """[*b T n] -> [*b (T - 1) hop + n], n a multiple of hop."""
    overlap = frames.shape[-1] // hop
    num_hops = frames.shape[-2] + overlap - 1
    total = jnp.zeros((*frames.shape[:-2], num_hops, hop), frames.dtype)
    for i in range(overlap):
        piece = frames[..., i * hop : (i + 1) * hop]
        widths = [(0, 0)] * (frames.ndim - 2) + [(i, overlap - 1 - i), (0, 0)]
        total = total + jnp.pad(piece, widths)
    return total.reshape(*total.shape[:-2], num_hops * hop)


def two_tap_matrix(grid: np.ndarray, size: int) -> np.ndarray:
    """The matrix [len(grid), size] that samples a line at `grid` in [-1, 1], linearly, corners aligned.

    The position is computed in float32 as PyTorch's `grid_sample` does: that the time axis is not quite the identity
    sets the level of digital silence inside the logarithm.
    """
    grid = grid.astype(np.float32)
    position = (grid + np.float32(1)) / np.float32(2) * np.float32(size - 1)
    low = np.floor(position)
    high_weight = position - low
    matrix = np.zeros((len(grid), size), np.float32)
    rows = np.arange(len(grid))
    for index, weight in ((low, (low + np.float32(1)) - position), (low + 1, high_weight)):
        inside = (index >= 0) & (index < size)
        matrix[rows[inside], index[inside].astype(int)] += weight[inside]
    return matrix


@lru_cache(maxsize=32)
def frequency_warp(num_warped_bins: int, num_bins: int) -> np.ndarray:
    """[K, F]: linear to logarithmic frequency."""
    grid = np.linspace(-1, 1, num_warped_bins)
    return two_tap_matrix((np.power(_WARP_BASE, (grid + 1) / 2) - 11) / 10, num_bins)


@lru_cache(maxsize=32)
def frequency_unwarp(num_bins: int, num_warped_bins: int) -> np.ndarray:
    """[F, K]: logarithmic to linear frequency."""
    grid = np.linspace(-1, 1, num_bins)
    return two_tap_matrix(np.log(grid * 10 + 11) / np.log(_WARP_BASE) * 2 - 1, num_warped_bins)


@lru_cache(maxsize=32)
def time_resample(num_frames: int) -> np.ndarray:
    """[T, T]: the identity, except for the rounding of the official grid."""
    return two_tap_matrix(np.linspace(-1, 1, num_frames), num_frames)


def _resample(image: Array, rows: np.ndarray) -> Array:
    """rows @ image @ time_resample.T on the last two axes, in full precision."""
    rows = rows.astype(image.dtype)
    image = jnp.einsum("kf,...ft->...kt", rows, image, precision=jax.lax.Precision.HIGHEST)
    return _times_tridiagonal(image, time_resample(image.shape[-1]))


def _times_tridiagonal(image: Array, matrix: np.ndarray) -> Array:
    """image @ matrix.T on the last axis: each frame with a little of its neighbours'."""
    bands = np.pad(np.diag(matrix, -1), (1, 0)), np.diag(matrix), np.pad(np.diag(matrix, 1), (0, 1))
    before, same, after = (_along_last(band, image) for band in bands)
    padded = jnp.pad(image, [(0, 0)] * (image.ndim - 1) + [(1, 1)])
    return before * padded[..., :-2] + same * image + after * padded[..., 2:]


def warp(magnitude: Float[Array, "*b F T"], config: SpectrogramConfig) -> Float[Array, "*b K T"]:
    """Linear to log frequency."""
    return _resample(magnitude, frequency_warp(config.num_warped_bins, config.num_bins))


def unwarp(mask: Float[Array, "*b K T"], config: SpectrogramConfig) -> Float[Array, "*b F T"]:
    """Log to linear frequency, for masks. Each row is made of two; a product of matrices takes ten times as long."""
    matrix = frequency_unwarp(config.num_bins, config.num_warped_bins)
    low = np.argmax(matrix > 0, axis=-1)
    high = np.minimum(low + 1, matrix.shape[1] - 1)
    bins = np.arange(len(matrix))
    weights = matrix[bins, low], np.where(high > low, matrix[bins, high], 0)
    shape = (*mask.shape[:-2], len(matrix), mask.shape[-1])
    low_weight, high_weight = (jnp.broadcast_to(jnp.asarray(w, mask.dtype)[:, None], shape) for w in weights)
    mask = _times_tridiagonal(mask, time_resample(mask.shape[-1]))
    return low_weight * mask[..., low, :] + high_weight * mask[..., high, :]


def apply_masks(
    masks: Float[Array, "*b N K T"], spectrum: Complex[Array, "*b F T"], config: SpectrogramConfig, length: int
) -> Float[Array, "*b N {length}"]:
    """Mask to sound: the waveforms that masks on the log-frequency grid let through of a mixture.

    Args:
        masks: in [0, 1].
        spectrum: of the mixture, as from `stft`.
        config: the same as for `stft`.
        length: samples to return.
    """
    return istft(unwarp(masks, config).astype(spectrum.dtype) * spectrum[..., None, :, :], config, length)


def log_warped_magnitude(magnitude: Float[Array, "*b F T"], config: SpectrogramConfig) -> Float[Array, "*b K T"]:
    """What the mask network sees: log of the warped (magnitude + 1e-10)."""
    return jnp.log(warp(magnitude + 1e-10, config))
