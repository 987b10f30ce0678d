"""Videos -> records: finding the files, and reading one."""

from pathlib import Path

from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.decode.media import decode
from clipsep_jax.data_prep.decode.refusal import outcome, refuse
from clipsep_jax.data_prep.decode.sound import checked_audio
from clipsep_jax.data_prep.ledger import Rejection
from clipsep_jax.data_prep.sources.inputs import Input, check_folder, read_table, walk

VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm",
})  # fmt: skip


def read_video(source: Input, *, reject_still: bool = False) -> Record | Rejection:
    """Read one clip: mono audio at 16 kHz and one picture per second, both from the clip's start.

    Args:
        reject_still: refuse a clip if all its pictures are the same.
    """
    return outcome(lambda: _read(source, reject_still))


def _read(source: Input, reject_still: bool) -> Record:
    decoded = decode(source.path, pictures=True, segment=source.segment)
    audio = checked_audio(decoded.audio, cancels=decoded.cancels)
    if reject_still and decoded.still_picture:
        refuse("still_picture", "all its pictures are the same")
    return Record(source.id, source.label, audio, decoded.frames, still_picture=decoded.still_picture)


def find_videos(folder: Path, labels_csv: Path | None = None) -> list[Input]:
    """List the clips of a folder: every video below it, sorted by path and without labels, or the rows of a CSV file.

    A clip without a stated split gets one by a hash (80% train, 10% validation, 10% test); clips of one video
    stay together, see `inputs.read_table`.

    Raises:
        InputError: the folder is missing or empty, or the CSV file is missing or malformed.
    """
    check_folder(folder, "videos")
    return walk(folder, VIDEO_SUFFIXES, "videos") if labels_csv is None else read_table(folder, labels_csv, "video")
