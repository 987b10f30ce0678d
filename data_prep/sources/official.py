"""Data sets as the official code prepares them: a wav file and a folder of pictures per clip, named in a list."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from PIL import Image

from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.decode.limits import MAX_PIXELS, MAX_SECONDS
from clipsep_jax.data_prep.decode.media import decode
from clipsep_jax.data_prep.decode.pictures import square_jpeg
from clipsep_jax.data_prep.decode.refusal import outcome, refuse
from clipsep_jax.data_prep.decode.sound import checked_audio
from clipsep_jax.data_prep.ledger import Rejection
from clipsep_jax.data_prep.sources.inputs import SPLITS, FrameFolder, Input, check_folder, path_below, read_rows
from clipsep_jax.errors import InputError

COLUMNS = ("audio", "frames", "count", "label")  # the training lists lack the last
_FIRST = ("test", "validation", "train")  # a clip in several lists belongs to the first of these
_SPLIT_WORDS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


def read_official(source: Input) -> Record | Rejection:
    """Read one clip: the recording, and its pictures from files."""
    return outcome(lambda: _read(source))


def _read(source: Input) -> Record:
    assert source.frames is not None
    decoded = decode(source.path, pictures=False)
    audio = checked_audio(decoded.audio, cancels=decoded.cancels)
    names = [source.frames.path / f"{number:06d}.jpg" for number in range(1, source.frames.count + 1)]
    jpegs = tuple(_read_picture(name) for name in names)
    return Record(source.id, source.label, audio, jpegs, still_picture=len(set(jpegs)) == 1)


def _read_picture(path: Path) -> bytes:
    if not path.is_file():
        refuse("missing", f"there is no picture {path.name}")
    try:
        with Image.open(path, formats=("JPEG",)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                refuse("oversize", f"{path.name} has {picture.width} x {picture.height} pixels, above {MAX_PIXELS}")
            return square_jpeg(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        refuse("undecodable", f"{path.name} is not a readable JPEG ({error})")


def find_official(lists: Sequence[Path], root: Path, prefix: str = "", split: str | None = None) -> list[Input]:
    """List the clips of one or more lists: path of a wav file, folder of pictures, their number, optionally a label.

    A clip that is listed again is a duplicate; a clip in several splits goes to test, else to validation.

    Args:
        root: the folder that the paths are relative to, after `prefix` is removed.
        prefix: a leading part of the paths to remove, such as the folder of another machine.
        split: that of all clips; None to read it from the word train, val or test in each list's name.

    Raises:
        InputError: a list or the root is missing, a list is malformed, or its split is unknown.
    """
    check_folder(root, "data set")
    splits = [(path, split or _split_of(path)) for path in lists]
    inputs: list[Input] = []
    seen: set[str] = set()
    for path, list_split in sorted(splits, key=lambda pair: _FIRST.index(pair[1])):
        for row, where in read_rows(path, COLUMNS, header=False):
            source = _input(row, where, root, prefix, list_split)
            inputs.append(replace(source, duplicate_of=source.id) if source.id in seen else source)
            seen.add(source.id)
    if not inputs:
        raise InputError(f"{lists[0]} is empty; give a list of the official code.")
    return inputs


def _input(row: dict[str, str | None], where: str, root: Path, prefix: str, split: str) -> Input:
    audio = path_below(_without(prefix, row["audio"], where), where, root)
    frames = path_below(_without(prefix, row["frames"], where), where, root)
    count = (row["count"] or "").strip()
    if not re.fullmatch(r"[0-9]{1,4}", count) or not 0 < int(count) <= MAX_SECONDS:
        raise InputError(f"{where}: expected a number of pictures from 1 to {MAX_SECONDS}, not {count!r}.")
    label = (row["label"] or "").strip()
    return Input(audio, root / audio, label, split, frames=FrameFolder(root / frames, int(count)))


def _split_of(path: Path) -> str:
    words = {_SPLIT_WORDS[word] for word in path.stem.lower().replace("_", "-").split("-") if word in _SPLIT_WORDS}
    if len(words) != 1:
        raise InputError(f"The split cannot be read from the name {path}; give --split {'|'.join(SPLITS)}.")
    return words.pop()


def _without(prefix: str, text: str | None, where: str) -> str:
    path = PurePosixPath((text or "").strip())
    if prefix and not path.is_relative_to(prefix):
        raise InputError(f"{where}: {text!r} does not begin with {prefix}; give another --prefix, or leave it out.")
    return str(path.relative_to(prefix) if prefix else path)
