"""Which mixtures are scored: drawn from a split, or listed pair by pair as in the official protocols."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np

from clipsep_jax.config import Config
from clipsep_jax.data.index import IndexEntry
from clipsep_jax.data.record_set import RecordSet, RecordSplit
from clipsep_jax.data_prep.decode.limits import MAX_SECONDS
from clipsep_jax.data_prep.sources.audio import AUDIO_SUFFIXES
from clipsep_jax.data_prep.sources.inputs import read_rows
from clipsep_jax.data_prep.sources.videos import VIDEO_SUFFIXES
from clipsep_jax.errors import InputError
from clipsep_jax.files import sha256_of
from clipsep_jax.queries.prompts import DEFAULT_TEMPLATE, EVALUATION_PROMPTS

DRAWN = "drawn"
OFFICIAL = {"music+": "music-plus.csv", "vggsound-clean+": "vggsound-clean-plus.csv"}
PAIRS_FOLDER = Path(__file__).parent / "pairs"
FROM_FILE = "pairs:"  # before the path of a list

_SUFFIXES = AUDIO_SUFFIXES | VIDEO_SUFFIXES
_MOST_ROUNDS = 20  # of draws for each mixture that is asked for
_COLUMNS = ("target", "interferer")
_YOUTUBE_CLIP = re.compile(r"([\w-]{11})(_\d+(\.\d+)?){0,2}")  # ID, ID_START or ID_START_END


@dataclass(frozen=True)
class HeldOutClip:
    """One source of a held-out mixture.

    Attributes:
        split, number: where its record is.
        label: by which it is asked for.
        num_frames: how many pictures its list counts, by which it is cut; None for the number that the record holds.
    """

    split: RecordSplit
    number: int
    label: str
    num_frames: int | None = None

    @property
    def entry(self) -> IndexEntry:
        """The line of the index, with the label that the clip is asked for by."""
        return replace(self.split.entries[self.number], label=self.label)

    @property
    def id(self) -> str:
        return self.split.entries[self.number].id


@dataclass(frozen=True)
class HeldOutMixture:
    """The sources of a mixture, the target first."""

    clips: tuple[HeldOutClip, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(clip.id for clip in self.clips)


@dataclass(frozen=True)
class Protocol:
    """The mixtures to score, and how texts ask for their sources.

    Attributes:
        name: "drawn", or that of the list.
        mixtures: those whose clips are all there.
        num_listed: how many there would be.
        missing: ids of listed clips that no record has.
        prompts: templates, whose embeddings are averaged.
        sha256: of the list; empty where there is none.
        record_sets: where the clips come from.
    """

    name: str
    mixtures: tuple[HeldOutMixture, ...]
    num_listed: int
    missing: tuple[str, ...]
    prompts: tuple[str, ...]
    sha256: str
    record_sets: tuple[RecordSet, ...]

    def __str__(self) -> str:
        if not self.sha256:
            return f"{len(self.mixtures)} mixtures {self.name}"
        return f"{len(self.mixtures)} of {self.num_listed} pairs of {self.name} (sha256 {self.sha256[:12]})"


def num_sources_of(config: Config) -> int:
    """Sources in the mixtures that a model is scored on: as many as it was trained with, and at least two."""
    return max(2, config.most_sounding)


def drawn_protocol(
    records: RecordSet, split: str, num_mixtures: int, num_sources: int, *, seed: int = 0, frames: bool = False
) -> Protocol:
    """Mixtures drawn from a split; see `draw_mixtures`. `frames` has pictures read with the clips.

    Raises:
        InputError: the split is missing, or does not have enough clips of different labels.
    """
    clips = records.split(split, with_frames=frames)
    if len(clips) < num_sources:
        raise InputError(f"The split {split!r} of {records.folder} has too few clips for mixtures of {num_sources}.")
    numbers = draw_mixtures(clips.entries, num_mixtures, num_sources, seed=seed)
    mixtures = tuple(
        HeldOutMixture(tuple(HeldOutClip(clips, n, clips.entries[n].label) for n in row)) for row in numbers
    )
    return Protocol(DRAWN, mixtures, num_mixtures, (), (DEFAULT_TEMPLATE,), "", (records,))


def draw_mixtures(
    entries: Sequence[IndexEntry], num_mixtures: int, num_sources: int, *, seed: int
) -> list[tuple[int, ...]]:
    """The numbers of the clips of each mixture, all of different labels, the target first.

    Targets cycle through the clips. Order and interferers follow from hashes of the clips' ids and the seed, so that a
    clip that is taken away changes only the mixtures that it was in. Clips without a label count as different from all
    others. No mixture comes twice, so few clips may give fewer mixtures than are asked for.

    Raises:
        InputError: there are not enough clips of different labels.
    """
    labels = [entry.label for entry in entries]
    hashes = np.array([int.from_bytes(hashlib.sha256(entry.id.encode()).digest()[:8], "big") for entry in entries])
    hashes = _mixed(hashes.astype(np.uint64), np.uint64(seed))
    codes = np.unique(labels, return_inverse=True)[1]
    codes = np.where([not label for label in labels], -1 - np.arange(len(labels)), codes)
    order = np.argsort(hashes, kind="stable")
    drawn: dict[tuple[int, ...], None] = {}
    for turn in range(_MOST_ROUNDS * num_mixtures):
        if len(drawn) == num_mixtures:
            break
        clips = [int(order[turn % len(order)])]
        key = _mixed(hashes[clips], np.uint64(turn // len(order)))
        while len(clips) < num_sources:
            key = _mixed(key, np.uint64(len(clips)))
            free = ~np.isin(codes, codes[clips])
            if not free.any():
                _too_few_labels(labels, clips, num_sources)
            clips.append(int(np.argmin(np.where(free, _mixed(hashes, key), np.uint64(2**64 - 1)))))
        drawn[tuple(clips)] = None
    return list(drawn)


def _too_few_labels(labels: Sequence[str], clips: Sequence[int], num_sources: int) -> NoReturn:
    only = ", ".join(map(repr, sorted({labels[clip] for clip in clips})))
    raise InputError(f"A mixture of {num_sources} needs clips of as many labels, but the split has only {only}.")


def _mixed(numbers: np.ndarray, key: np.ndarray | np.uint64) -> np.ndarray:
    """Numbers and a key as new numbers that look random (the finalizer of splitmix64)."""
    x = numbers ^ (np.atleast_1d(key) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0xD1B54A32D192ED03))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def listed_protocol(name: str, targets: RecordSet, interferers: RecordSet, *, frames: bool = False) -> Protocol:
    """The pairs of an official protocol, or of a list of one's own ("pairs:FILE"), as far as their clips are there.

    A list is a CSV file with the columns target and interferer (ids of clips), and maybe target_label,
    interferer_label, target_frames and interferer_frames. A clip whose id in the records is a path, or a YouTube id
    with times, is found by its name too.

    Raises:
        InputError: there is no such protocol, its list is malformed or ambiguous, or no pair's clips are there.
    """
    own = name.removeprefix(FROM_FILE) if name.startswith(FROM_FILE) else None
    if own is None and name not in OFFICIAL:
        raise InputError(
            f"There is no protocol {name!r}; give {', '.join(OFFICIAL)}, {DRAWN} or {FROM_FILE}FILE (a CSV file)."
        )
    path = Path(own) if own is not None else PAIRS_FOLDER / OFFICIAL[name]
    clips_of_targets = _clips_of(targets, frames)
    others = clips_of_targets if interferers is targets else _clips_of(interferers, frames)
    sets = {"target": clips_of_targets, "interferer": others}
    mixtures, missing, num_listed = [], dict[str, None](), 0
    for row, where in read_rows(path, _COLUMNS):
        clips = [_clip(row, role, found, where) for role, found in sets.items()]
        num_listed += 1
        missing |= {row[role] or "": None for role, clip in zip(sets, clips, strict=True) if clip is None}
        if all(clips):
            mixtures.append(HeldOutMixture(tuple(clip for clip in clips if clip)))
            if clips[0] == clips[1]:
                raise InputError(f"{where}: {row['target']} is mixed with itself; name another interferer.")
    if not mixtures:
        example = next(iter(missing), "none")
        raise InputError(
            f"No pair of {name} has both clips in {targets.folder} and {interferers.folder} ({example} is missing); "
            "prepare the data that the list names."
        )
    record_sets = (targets,) if targets is interferers else (targets, interferers)
    return Protocol(name, tuple(mixtures), num_listed, tuple(missing), EVALUATION_PROMPTS, sha256_of(path), record_sets)


_Place = tuple[RecordSplit, int]


@dataclass(frozen=True)
class _Clips:
    """Where each clip of some records is, by its id, and by its name, which several may have."""

    by_id: Mapping[str, _Place]
    by_name: Mapping[str, Sequence[_Place]]

    def find(self, id: str, where: str) -> _Place | None:
        """The clip that a list names, or None."""
        if id in self.by_id:
            return self.by_id[id]
        found = self.by_name.get(id, ())
        if len(found) > 1:
            ids = " and ".join(split.entries[number].id for split, number in found[:2])
            raise InputError(f"{where}: {id} is the name of {ids}; list one of these.")
        return found[0] if found else None


def _clips_of(records: RecordSet, frames: bool) -> _Clips:
    by_id: dict[str, _Place] = {}
    by_name: dict[str, list[_Place]] = {}
    for name in sorted(records.splits, key=lambda name: name != "test"):
        split = records.split(name, with_frames=frames)
        for number, entry in enumerate(split.entries):
            by_id.setdefault(entry.id, (split, number))
            by_name.setdefault(_name(entry.id), []).append((split, number))
    return _Clips(by_id, by_name)


def _name(id: str) -> str:
    """The name of a clip whose id is a path; of YouTube's, without its times."""
    path = PurePosixPath(id)
    name = path.stem if path.suffix.lower() in _SUFFIXES else path.name
    youtube = _YOUTUBE_CLIP.fullmatch(name)
    return youtube.group(1) if youtube else name


def _clip(row: Mapping[str, str | None], role: str, clips: _Clips, where: str) -> HeldOutClip | None:
    id = (row[role] or "").strip()
    if not id:
        raise InputError(f"{where}: the column {role} is empty; name a clip.")
    frames = (row.get(f"{role}_frames") or "").strip()
    if frames and not (re.fullmatch(r"[0-9]{1,4}", frames) and 0 < int(frames) <= MAX_SECONDS):
        raise InputError(f"{where}: {frames!r} is not a number of pictures from 1 to {MAX_SECONDS}.")
    place = clips.find(id, where)
    if place is None:
        return None
    split, number = place
    label = (row.get(f"{role}_label") or "").strip() or split.entries[number].label
    return HeldOutClip(split, number, label, int(frames) if frames else None)
