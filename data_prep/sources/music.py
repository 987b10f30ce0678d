"""MUSIC and MUSIC-21 (Zhao et al., ECCV 2018 and ICCV 2019): their lists, and where the downloaded videos are."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from clipsep_jax.data_prep.sources.inputs import Input, check_folder, files_by_stem, hashed_split
from clipsep_jax.data_prep.sources.videos import VIDEO_SUFFIXES
from clipsep_jax.errors import InputError
from clipsep_jax.files import check_json, is_file_name, read_json


def read_list(path: Path) -> Iterator[tuple[str, str]]:
    """The (instruments, YouTube id) of MUSIC_solo_videos.json, MUSIC21_solo_videos.json or MUSIC_duet_videos.json.

    Raises:
        InputError: the file is missing or malformed.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}; give MUSIC_solo_videos.json or another list of MUSIC.")
    otherwise = 'is not a list of MUSIC: expected {"videos": {"cello": [ids]}}.'
    videos = read_json(path, otherwise, dict).get("videos")
    classes = check_json(videos, path, otherwise, dict[str, list[str]], "videos")
    rows = [(name, video) for name, videos in classes.items() for video in videos]
    if not all(is_file_name(video) for _, video in rows):
        raise InputError(f"{path} {otherwise}")
    if not rows:
        raise InputError(f"{path} lists no videos; give another list of MUSIC.")
    yield from rows


def find_music(lists: Sequence[Path], folder: Path) -> list[Input]:
    """List the videos of one or more of the lists, 11 or 21 instruments, solos or duets.

    An id's video is the file named `ID`, with any video suffix, anywhere below the folder. The label of a solo is the
    instrument in words, that of a duet names both ("flute and violin"). The split is chosen by a hash of the id: 80%
    train, 10% validation, 10% test. An id that is listed twice gives one clip.

    Raises:
        InputError: a list or the folder is missing, or a list is malformed.
    """
    labels: dict[str, str] = {}
    for path in lists:
        for instruments, video in read_list(path):
            labels.setdefault(video, " and ".join(name.replace("_", " ") for name in instruments.split()))
    check_folder(folder, "videos")
    files = files_by_stem(folder, VIDEO_SUFFIXES)
    return [
        Input(video, files.get(video) or folder / f"{video}.mp4", label, hashed_split(video))
        for video, label in labels.items()
    ]
