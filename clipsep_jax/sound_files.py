"""Reading the sound of files, and writing sounds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipsep_jax.data_prep.decode.limits import MAX_FILE_SECONDS
from clipsep_jax.data_prep.decode.refusal import Refused
from clipsep_jax.data_prep.decode.sound_blocks import SoundBlocks
from clipsep_jax.errors import InputError
from clipsep_jax.files import atomic_write

# What to do about a refused file, by reason.
_ADVICE = {
    "missing": "give a sound or video file",
    "no_audio": "give a recording with sound",
    "oversize": "cut it into shorter files, or allow it by --max-hours",
    "undecodable": "export it again, as WAV or MP4",
}


@contextmanager
def open_sound(path: Path, max_seconds: int = MAX_FILE_SECONDS) -> Iterator[SoundBlocks]:
    """Open the sound of a sound or video file, to be iterated over block by block [C L], at its own rate, finite.

    The reasons and messages of refusals are those of `clipsep prepare` (docs/records.md).

    Raises:
        InputError: the file is missing, has no sound, is too long, or cannot be decoded; also from within the block.
    """
    try:
        with SoundBlocks(path, max_seconds) as blocks:
            yield blocks
    except Refused as refusal:
        advice = _ADVICE[refusal.reason if path.is_file() else "missing"]
        raise InputError(f"{path} cannot be read as sound: {refusal.detail}; {advice}.") from refusal


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
