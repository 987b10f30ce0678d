"""Recordings without pictures -> records, for systems whose queries are labels, sentences or nothing."""

from pathlib import Path

from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.decode.media import decode
from clipsep_jax.data_prep.decode.refusal import outcome
from clipsep_jax.data_prep.decode.sound import checked_audio
from clipsep_jax.data_prep.ledger import Rejection
from clipsep_jax.data_prep.sources.inputs import Input, check_folder, read_table, walk

AUDIO_SUFFIXES = frozenset({
    ".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mka",
    ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav", ".webm",
})  # fmt: skip


def read_audio(source: Input) -> Record | Rejection:
    """Read the sound of one recording: mono at 16 kHz."""
    return outcome(lambda: _read(source))


def _read(source: Input) -> Record:
    decoded = decode(source.path, pictures=False, segment=source.segment)
    audio = checked_audio(decoded.audio, cancels=decoded.cancels)
    return Record(source.id, source.label, audio, frames=())


def find_audio(folder: Path, labels_csv: Path | None = None) -> list[Input]:
    """List the recordings of a folder, like `videos.find_videos`; the CSV file's column is `audio`.

    Raises:
        InputError: the folder is missing or empty, or the CSV file is missing or malformed.
    """
    check_folder(folder, "recordings")
    return walk(folder, AUDIO_SUFFIXES, "recordings") if labels_csv is None else read_table(folder, labels_csv, "audio")
