"""Reading the sound of files, and writing sounds."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.data_prep.decode.limits import MAX_FILE_SECONDS, check_is_file
from clipsep_jax.data_prep.decode.media import decode
from clipsep_jax.data_prep.decode.refusal import Refused, refuse
from clipsep_jax.data_prep.decode.sound import check_finite
from clipsep_jax.errors import InputError
from clipsep_jax.files import atomic_write

LIBSNDFILE_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".aif", ".aiff"}  # FFmpeg reads the others

# What to do about a refused file, by reason.
_ADVICE = {
    "missing": "give a sound or video file",
    "no_audio": "give a recording with sound",
    "oversize": "cut it into shorter files",
    "undecodable": "export it again, as WAV or MP4",
}


def read_sound(path: Path) -> Float32[np.ndarray, " L"]:
    """Read the sound of a sound or video file: mono (the mean of its channels) at 16 kHz, finite.

    The reasons and messages of refusals are those of `clipsep prepare` (docs/records.md).

    Raises:
        InputError: the file is missing, has no sound, is too long, or cannot be decoded.
    """
    try:
        if path.suffix.lower() in LIBSNDFILE_SUFFIXES:
            return _read_by_libsndfile(path)
        return decode(path, pictures=False, max_seconds=MAX_FILE_SECONDS).audio
    except Refused as refusal:
        advice = _ADVICE[refusal.reason]
        raise InputError(f"{path} cannot be read as sound: {refusal.detail}; {advice}.") from refusal


def _read_by_libsndfile(path: Path) -> Float32[np.ndarray, " L"]:
    import librosa
    import soundfile

    try:
        check_is_file(path)
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OSError) as error:
        refuse("undecodable", f"it cannot be decoded: {str(error).rstrip('.')}")
    if not len(samples):
        refuse("no_audio", "it holds no samples")
    mono = samples.mean(axis=1)
    check_finite(mono)
    return np.asarray(librosa.resample(mono, orig_sr=rate_hz, target_sr=SAMPLE_RATE_HZ), np.float32)


def write_sound(path: Path, waveform: Float32[np.ndarray, " L"], sample_rate_hz: int) -> None:
    """Write a 16-bit wav file, whole or not at all; samples outside [-1, 1] are clipped.

    Raises:
        ValueError: a sample is not finite.
    """
    import soundfile

    if not np.isfinite(waveform).all():
        raise ValueError(f"{path} would hold samples that are not finite")
    with atomic_write(path) as file:
        soundfile.write(file, np.clip(waveform, -1, 1), sample_rate_hz, subtype="PCM_16", format="WAV")
