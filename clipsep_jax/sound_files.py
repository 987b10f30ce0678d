"""Reading and writing recordings."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipsep_jax.errors import InputError
from clipsep_jax.files import atomic_write

SOUND_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".aif", ".aiff"}


def read_sound(path: Path, sample_rate_hz: int) -> Float32[np.ndarray, " L"]:
    """A sound file (wav, flac, mp3, ogg, aiff) as mono samples at a rate: the mean of its channels, resampled.

    Raises:
        InputError: the file is missing, empty, or no such sound.
    """
    import librosa
    import soundfile

    if not path.is_file():
        raise InputError(f"{path} does not exist; give a sound or video file.")
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as sound ({error}); convert it to wav first.") from error
    if not len(samples):
        raise InputError(f"{path} holds no samples; give a recording with sound.")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise InputError(f"{path} holds samples that are no numbers; export it again.")
    return np.asarray(librosa.resample(mono, orig_sr=rate_hz, target_sr=sample_rate_hz), np.float32)


def write_sound(path: Path, waveform: Float32[np.ndarray, " L"], sample_rate_hz: int) -> None:
    """Writes a 16-bit wav file, whole or not at all; samples outside [-1, 1] are clipped."""
    import soundfile

    with atomic_write(path) as file:
        soundfile.write(file, np.clip(waveform, -1, 1), sample_rate_hz, subtype="PCM_16", format="WAV")
