"""Reading the sound of files, and writing sounds."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.data_prep.decode.limits import MAX_RECORDING_SECONDS, check_duration, check_file, check_sound_format
from clipsep_jax.data_prep.decode.media import decode
from clipsep_jax.data_prep.decode.refusal import Refused, refuse
from clipsep_jax.data_prep.decode.sound import channels_cancel, check_finite
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.files import atomic_write

LIBSNDFILE_SUFFIXES = {".wav", ".flac", ".ogg", ".aif", ".aiff"}  # FFmpeg reads the others
_LIBSNDFILE_FORMATS = {"WAV", "WAVEX", "RF64", "FLAC", "OGG", "AIFF"}  # whatever the suffix says

_BLOCK_SAMPLES = 2**18

# What to do about a refused file, by reason.
_ADVICE = {
    "missing": "give a sound or video file",
    "no_audio": "give a recording with sound",
    "oversize": "cut it into shorter files, or allow it by --max-hours",
    "undecodable": "export it again, as WAV or MP4",
}


def read_sound(path: Path, max_seconds: int = MAX_RECORDING_SECONDS) -> Float32[np.ndarray, " L"]:
    """Read the sound of a sound or video file: mono (the mean of its channels) at 16 kHz, finite.

    The reasons and messages of refusals are those of `clipsep prepare` (docs/records.md). Channels that cancel each
    other out give silence, with a warning.

    Raises:
        InputError: the file is missing, has no sound, is too long, or cannot be decoded.
    """
    try:
        if path.suffix.lower() in LIBSNDFILE_SUFFIXES:
            audio, cancels = _read_by_libsndfile(path, max_seconds)
        else:
            decoded = decode(path, pictures=False, max_seconds=max_seconds)
            audio, cancels = decoded.audio, decoded.cancels
    except Refused as refusal:
        advice = _ADVICE[refusal.reason if path.is_file() else "missing"]
        raise InputError(f"{path} cannot be read as sound: {refusal.detail}; {advice}.") from refusal
    if cancels:
        sentence = f"the channels of {path} cancel each other out, and their mean is silent; give one channel of it."
        warnings.warn(sentence, InputWarning, stacklevel=2)
    return audio


def _read_by_libsndfile(path: Path, max_seconds: int) -> tuple[Float32[np.ndarray, " L"], bool]:
    """The sound, and whether its channels cancel each other out.

    Read block by block, since a small file can hold, or claim, more than fits into memory.
    """
    import librosa
    import soundfile
    import soxr

    check_file(path)
    resampled, num_samples, loudest = [], 0, 0.0
    try:
        with soundfile.SoundFile(path) as file:
            rate_hz = file.samplerate
            if file.format not in _LIBSNDFILE_FORMATS:
                refuse("undecodable", f"it is {file.format}, whatever its name says")
            check_sound_format(rate_hz, file.channels)
            resampler = soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
            for block in file.blocks(_BLOCK_SAMPLES, dtype="float32", always_2d=True):
                if not len(block):  # the header claimed more
                    break
                mono = block.mean(axis=1)
                check_finite(mono)
                loudest = max(loudest, float(np.abs(block).max()))
                num_samples += len(mono)
                check_duration(num_samples / rate_hz, max_seconds)
                resampled.append(mono if rate_hz == SAMPLE_RATE_HZ else resampler.resample_chunk(mono))
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OSError) as error:
        refuse("undecodable", f"it cannot be decoded: {str(error).rstrip('.')}")
    if not num_samples:
        refuse("no_audio", "it holds no samples")
    if rate_hz != SAMPLE_RATE_HZ:
        resampled.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    length = -(-num_samples * SAMPLE_RATE_HZ // rate_hz)
    audio = librosa.util.fix_length(np.concatenate(resampled), size=length)
    return audio, channels_cancel(loudest, audio)


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
