"""The clips to prepare, each with a name and a split, listed from a folder, a table, or a data set's own files."""

import csv
import hashlib
import os
import re
import stat
import sys
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

from tqdm import tqdm

from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.files import MOST_LIST_BYTES, check_is_file

SPLITS = ("train", "validation", "test")

_BEGINNING_BYTES = 2**16
_YOUTUBE = re.compile(r"([\w-]{11})(_\d+(\.\d+)?){0,2}")  # ID, ID_START or ID_START_END, as data sets name clips


@dataclass(frozen=True)
class Segment:
    """A part of a longer video; a file that is no longer than the part is taken to be the part."""

    start_seconds: float
    seconds: float


@dataclass(frozen=True)
class FrameFolder:
    """Pictures in separate files, as the official code extracts them: 000001.jpg, 000002.jpg, ..., one per second."""

    path: Path
    count: int


@dataclass(frozen=True)
class Input:
    """A clip to prepare.

    Attributes:
        id: names the clip; for a file in a folder, its POSIX path relative to that folder.
        path: the video or recording.
        label: what is heard, "" if unknown.
        split: "train", "validation" or "test".
        segment: the part of the file that is the clip, None for all of it.
        frames: where the pictures are, None if they are in the video or there are none.
        duplicate_of: id of an earlier input that is the same, or "".
    """

    id: str
    path: Path
    label: str
    split: str
    segment: Segment | None = None
    frames: FrameFolder | None = None
    duplicate_of: str = ""


def hashed_split(group: str, shares: tuple[float, float] = (0.1, 0.1)) -> str:
    """Choose a split that depends on the name of a group alone, so that the group stays together.

    Args:
        shares: those of validation and test; the rest is train.
    """
    digest = hashlib.sha256(group.encode("utf-8", "surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < 1 - sum(shares):
        return "train"
    return "validation" if place < 1 - shares[1] else "test"


def video_of(id: str) -> str:
    """The video that a clip is or was cut from, read from its name: ID for `ID.mp4` and `a/ID_000030.webm`.

    Clips of one video go into one split.
    """
    match = _YOUTUBE.fullmatch(PurePosixPath(id).with_suffix("").name)
    return match[1] if match else id


def walk(folder: Path, suffixes: Iterable[str], what: str) -> list[Input]:
    """Every regular file below a folder with one of the suffixes, sorted by path, labels unknown.

    Raises:
        InputError: the folder is missing or holds none.
    """
    check_folder(folder, what)
    paths = [path for path in _files(folder, suffixes) if path.is_file()]
    ids = sorted(path.relative_to(folder).as_posix() for path in paths)
    if not ids:
        raise InputError(f"{folder} holds no {what}; name another folder or list.")
    return [Input(id, folder / id, "", hashed_split(video_of(id))) for id in ids]


def check_folder(folder: Path, what: str) -> None:
    """Raise an InputError if there is no such folder."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; name the folder that holds the {what}.")


def read_table(folder: Path, table: Path, column: str) -> list[Input]:
    """The clips of a CSV file in its order: a `column` of paths, `label`, and optionally `split` and `group`.

    A clip without a stated split gets that of its group: the stated one, or one by hash. Without a stated group, the
    group is the video that the clip was cut from.

    Raises:
        InputError: the file is missing or malformed, a path leads out of the folder or is listed twice, or a group has
            two splits.
    """
    rows: list[tuple[str, str, str, str]] = []
    seen: set[str] = set()
    of_group: dict[str, str] = {}
    for row, where in read_rows(table, (column, "label")):
        id = path_below(row[column], where, folder)
        if id in seen:
            raise InputError(f"{where}: {id} is listed twice; remove one.")
        seen.add(id)
        split = (row.get("split") or "").strip()
        if split not in ("", *SPLITS):
            raise InputError(f"{where}: the split {split!r} is unknown; use {', '.join(SPLITS)} or leave it empty.")
        group = (row.get("group") or "").strip()
        if group and split and of_group.setdefault(group, split) != split:
            raise InputError(f"{where}: the group {group!r} is in {of_group[group]} and in {split}; give it one split.")
        rows.append((id, (row["label"] or "").strip(), split, group or video_of(id)))
    if not rows:
        raise InputError(f"{table} holds no {column}s; name another folder or list.")
    stated = {group: split for _, _, split, group in reversed(rows) if split}
    return [
        Input(id, folder / id, label, split or stated.get(group) or hashed_split(group))
        for id, label, split, group in rows
    ]


def read_rows(table: Path, columns: Sequence[str], header: bool = True) -> Iterator[tuple[dict[str, str | None], str]]:
    """The rows of a CSV file in UTF-8, each with its place in words: "FILE, line 3".

    Args:
        columns: those that are required.
        header: whether the first line names the columns; without it, they have the order of `columns`.

    Raises:
        InputError: the file is missing, is not a CSV file, or lacks a column.
    """
    named = ",".join(columns)
    if not table.is_file():
        raise InputError(f"There is no file {table}; give a CSV file with the columns {named}.")
    check_is_file(table, MOST_LIST_BYTES)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, None if header else columns)
            if not set(columns) <= set(rows.fieldnames or ()):
                raise InputError(f"{table} lacks a column: its first line must name {named} (and more).")
            for row in rows:
                yield row, f"{table}, line {rows.line_num}"
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{table} is not a readable CSV file in UTF-8 ({error}); save it as one.") from error


def path_below(text: str | None, where: str, folder: Path) -> str:
    """A path of a list as an id; raise an InputError if it leads out of the folder."""
    relative = PurePosixPath((text or "").strip())
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or "\0" in str(relative):
        raise InputError(f"{where}: {text!r} is not a path below {folder}; give a path relative to that folder.")
    return relative.as_posix()


def files_by_stem(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """The files below a folder by their name without suffix; if several share a name, the first by path, and a warning
    says so.
    """
    paths = sorted(_files(folder, suffixes), reverse=True)
    found = {path.stem: path for path in paths}
    if len(found) < len(paths):
        other = next(path for path in paths if found[path.stem] != path)
        num = len(paths) - len(found)
        sentence = f"{num} files have the name of another, which is used instead: {found[other.stem]}, not {other}."
        warnings.warn(sentence, InputWarning, stacklevel=2)
    return found


def _files(folder: Path, suffixes: Iterable[str]) -> Iterator[Path]:
    """The files below a folder with one of the suffixes; an OSError names a folder that cannot be read."""
    known = set(suffixes)

    def refuse(error: OSError) -> NoReturn:
        raise error

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in names if Path(name).suffix.lower() in known)


def file_size(path: Path) -> int | None:
    """The size of a regular file in bytes, None if it is missing or inaccessible."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def mark_duplicates(inputs: Sequence[Input]) -> list[Input]:
    """Set `duplicate_of` if an earlier input is the same part of a file with the same bytes.

    Only files of equal size are read, and only those with the same beginning to their end.
    """
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for number, source in enumerate(inputs):
        size = file_size(source.path)
        if not source.duplicate_of and size is not None:
            alike[size, source.segment, source.frames].append(number)
    for num_bytes in (_BEGINNING_BYTES, None):
        finer: dict[Hashable, list[int]] = defaultdict(list)
        candidates = [(key, number) for key, numbers in alike.items() if len(numbers) > 1 for number in numbers]
        for key, number in tqdm(candidates, "duplicates", unit="file", delay=2, file=sys.stderr):
            finer[key, _digest(inputs[number].path, num_bytes)].append(number)
        alike = finer
    marked = list(inputs)
    for first, *others in alike.values():
        for number in others:
            marked[number] = replace(inputs[number], duplicate_of=inputs[first].id)
    return marked


def _digest(path: Path, num_bytes: int | None) -> bytes:
    try:
        with path.open("rb") as file:
            if num_bytes is not None:
                return hashlib.sha256(file.read(num_bytes)).digest()
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return os.fsencode(path)  # it will be rejected when it is read
