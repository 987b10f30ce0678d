"""VGGSound (Chen et al., ICASSP 2020): its list, and where the downloaded videos are."""

import re
from pathlib import Path

from clipsep_jax.data_prep.sources.inputs import Input, Segment, check_folder, files_by_stem, hashed_split, read_rows
from clipsep_jax.data_prep.sources.videos import VIDEO_SUFFIXES
from clipsep_jax.errors import InputError

CLIP_SECONDS = 10
_SECOND = re.compile(r"[0-9]{1,6}")
COLUMNS = ("youtube_id", "start_seconds", "label", "split")


def read_list(table: Path) -> list[tuple[str, int, str, str]]:
    """The rows of vggsound.csv, which has no header: YouTube id, start second, label, split ("train" or "test").

    Raises:
        InputError: the file is missing, or a row is not of that form.
    """
    rows = []
    for row, where in read_rows(table, COLUMNS, header=False):
        video, start, label, split = ((row[name] or "").strip() for name in COLUMNS)
        if not video or "/" in video or not _SECOND.fullmatch(start) or split not in ("train", "test"):
            raise InputError(f"{where}: expected a YouTube id, start second, label, and train or test, as in VGGSound.")
        rows.append((video, int(start), label, split))
    if not rows:
        raise InputError(f"{table} is empty; give vggsound.csv.")
    return rows


def find_vggsound(table: Path, folder: Path, validation_share: float = 0.02) -> list[Input]:
    """List the clips of VGGSound: 10 s from the start second.

    A row's video is the file named `ID_START` (such as `abcdefghijk_000030.mp4`) or `ID`, with any video suffix,
    anywhere below the folder. A file that is no longer than the clip is taken to be the clip. A clip that is listed
    again is a duplicate.

    Args:
        validation_share: part of the training videos, chosen by a hash of their id, that becomes the validation
            split, as VGGSound has none.

    Raises:
        InputError: the list or the folder is missing, or the list is malformed.
    """
    rows = read_list(table)
    check_folder(folder, "videos")
    files = files_by_stem(folder, VIDEO_SUFFIXES)
    inputs: list[Input] = []
    seen: set[str] = set()
    for video, start, label, split in rows:
        id = f"{video}_{start:06d}"
        path = files.get(id) or files.get(video) or folder / f"{id}.mp4"
        if split == "train":
            split = hashed_split(video, (validation_share, 0.0))
        segment = Segment(float(start), float(CLIP_SECONDS))
        inputs.append(Input(id, path, label, split, segment, duplicate_of=id if id in seen else ""))
        seen.add(id)
    return inputs
