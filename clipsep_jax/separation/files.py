"""Which recordings are separated, and the names of the files that they give."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from clipsep_jax.data_prep.sources.audio import AUDIO_SUFFIXES
from clipsep_jax.data_prep.sources.videos import VIDEO_SUFFIXES
from clipsep_jax.errors import InputError
from clipsep_jax.files import MOST_LIST_BYTES, check_is_file

_MOST_NAME_BYTES = 255
_MOST_QUERY_BYTES = 80
_PARTIAL_BYTES = 48  # that a name has more while its file is being written


@dataclass(frozen=True)
class Recording:
    """A file to separate, and what the names of its stems begin with, below the output folder."""

    path: Path
    name: PurePath


def find_recordings(inputs: Sequence[str], list_path: Path | None = None, out: Path | None = None) -> list[Recording]:
    """Files as they are, those below folders, those that patterns such as `*.wav` match, and those of a list.

    What lies below `out`, the folder of the results, is left out where it lies in a folder of inputs.

    Files that would give the same names get their suffix into the name, or a number.

    Raises:
        InputError: there is none, the list cannot be read, or `out` is a folder of inputs.
    """
    inputs = [*inputs, *(_lines(list_path) if list_path else ())]
    found = [recording for text in inputs for recording in _found(text, out)]
    if not found:
        raise InputError("There is no recording to separate; give a file, a folder, or a pattern that matches some.")
    once = list({recording.path: recording for recording in found}.values())
    counts = Counter(recording.name for recording in once)
    named = [r if counts[r.name] == 1 else _with_suffix(r) for r in once]
    taken: Counter[PurePath] = Counter()
    different = []
    for recording in named:
        taken[recording.name] += 1
        number = taken[recording.name]
        name = recording.name.with_name(f"{recording.name.name}_{number}") if number > 1 else recording.name
        different.append(Recording(recording.path, name))
    return different


def _with_suffix(recording: Recording) -> Recording:
    suffix = recording.path.suffix.lower().replace(".", "-")
    return Recording(recording.path, recording.name.with_name(recording.name.name + suffix))


def _lines(path: Path) -> list[str]:
    check_is_file(path, MOST_LIST_BYTES)
    return [line for line in os.fsdecode(path.read_bytes()).splitlines() if line.strip()]


def _found(text: str, out: Path | None) -> list[Recording]:
    path = Path(text)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES | VIDEO_SUFFIXES)
        if out and out.resolve() == path.resolve():
            raise InputError(f"The stems in {out} would be recordings of the next run; give a folder of their own.")
        results = out.resolve() if out and path.resolve() in out.resolve().parents else None
        kept = [p for p in inside if p.is_file() and results not in p.resolve().parents]
        return [Recording(p, p.relative_to(path).with_suffix("")) for p in kept]
    if not path.exists() and glob.has_magic(text):
        return [
            Recording(p, PurePath(p.stem)) for p in map(Path, sorted(glob.glob(text, recursive=True))) if p.is_file()
        ]
    return [Recording(path, PurePath(path.stem))]


def output_paths(folder: Path, name: PurePath, titles: Sequence[str], suffix: str) -> list[Path]:
    """NAME_TITLE.SUFFIX for each title, all different."""
    endings = list(map(_file_name, titles))
    endings = [e if endings.count(e) == 1 else f"{e}_{i + 1}" for i, e in enumerate(endings)]
    return [folder / name.parent / f"{_cut(name.name, ending, suffix)}_{ending}.{suffix}" for ending in endings]


def _cut(name: str, ending: str, suffix: str) -> str:
    """A name that leaves room for what follows it."""
    room = _MOST_NAME_BYTES - _PARTIAL_BYTES - len(f"_{ending}.{suffix}".encode())
    return os.fsencode(name)[:room].decode(errors="surrogateescape" if len(os.fsencode(name)) <= room else "ignore")


def _file_name(title: str) -> str:
    letters = "".join(c if c.isalnum() else "-" for c in title.lower())
    short = "-".join(filter(None, letters.split("-"))).encode()[:_MOST_QUERY_BYTES].decode(errors="ignore")
    return short or "query"
