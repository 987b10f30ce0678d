"""Other systems' estimates of the same mixtures, as sound files; and the mixtures for them."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.mixtures import MixtureReader
from clipsep_jax.evaluation.protocols import HeldOutMixture, Protocol
from clipsep_jax.files import atomic_write, check_is_file, write_json

INDEX_NAME = "mixtures.json"
_MOST_BYTES = 64 * 2**20
_FORMATS = ("WAV", "WAVEX", "FLAC")


def file_name(mixture: HeldOutMixture) -> str:
    """The name of a mixture's sound file: its clips' ids as far as a name can hold them, and a part of their hash."""
    digest = hashlib.sha256("\0".join(mixture.ids).encode()).hexdigest()[:8]
    words = [re.sub(r"[^A-Za-z0-9_-]+", "-", id)[-60:] for id in mixture.ids]
    return "__".join([*words[:3], digest]) + ".wav"


def export_mixtures(folder: Path, protocol: Protocol, reader: MixtureReader) -> Path:
    """Write each mixture as a wav file of 32-bit floats, and an index; returns the index's path.

    Raises:
        InputError: the folder holds something else.
    """
    import soundfile

    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / INDEX_NAME).is_file())):
        raise InputError(f"{folder} holds something else than exported mixtures; give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for mixture in tqdm(protocol.mixtures, desc="export", unit="mixture"):
        name = file_name(mixture)
        with atomic_write(folder / name) as file:
            sound = reader.read([mixture]).mixture[0]
            soundfile.write(file, sound, SAMPLE_RATE_HZ, subtype="FLOAT", format="WAV")
        labels = [clip.label for clip in mixture.clips]
        lines.append({
            "file": name, "target": mixture.ids[0], "interferers": list(mixture.ids[1:]),
            "target_label": labels[0], "interferer_labels": labels[1:],
        })  # fmt: skip
    index = {
        "protocol": str(protocol),
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "num_samples": reader.num_samples,
        "num_scored_samples": reader.num_scored,
        "mixtures": lines,
    }
    write_json(folder / INDEX_NAME, index)
    return folder / INDEX_NAME


class OtherSystem:
    """Estimates of the targets by another system: a mono sound file for each mixture, with the name of the mixture's.

    Attributes:
        name: of its folder, under which it is scored.
    """

    def __init__(self, folder: Path):
        """Name a system by its folder.

        Raises:
            InputError: there is no such folder.
        """
        self.folder, self.name = folder, folder.resolve().name
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder}; give one of estimates, a wav file for each mixture.")

    def read(self, mixtures: Sequence[HeldOutMixture], num_samples: int) -> Float[np.ndarray, "B L"]:
        """The estimates of some mixtures.

        Raises:
            InputError: one is missing, unreadable, or has another rate, length or number of channels.
        """
        return np.stack([self._read(self.folder / file_name(mixture), num_samples) for mixture in mixtures])

    def _read(self, path: Path, num_samples: int) -> np.ndarray:
        import soundfile

        if not path.is_file():
            raise InputError(
                f"{path} is missing; {self.name} needs an estimate of each mixture (see --export-mixtures)."
            )
        check_is_file(path, _MOST_BYTES)
        try:
            with path.open("rb") as file, soundfile.SoundFile(file) as sound:
                kind, found = sound.format, (sound.samplerate, sound.frames, sound.channels)
                fits = kind in _FORMATS and found == (SAMPLE_RATE_HZ, num_samples, 1)
                samples = sound.read(dtype="float32") if fits else None
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{path} cannot be read as a wav file ({str(error).rstrip('.')}).") from error
        if kind not in _FORMATS:
            raise InputError(f"{path} is a file of the format {kind}; write wav files.")
        if samples is None:
            rate, length, channels = found
            raise InputError(
                f"{path} has {length} samples at {rate} Hz in {channels} channels, but the mixture has {num_samples} "
                f"at {SAMPLE_RATE_HZ} Hz in 1; write estimates of its length."
            )
        return samples
