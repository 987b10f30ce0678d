"""What the manual has for its reader to type, and a folder in which the files that it names exist at the least size."""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import soundfile

from clipsep_jax import metrics
from clipsep_jax.cli.main import main
from clipsep_jax.data_prep.embed_set import embed_record_set
from clipsep_jax.data_prep.sources.inputs import hashed_split
from clipsep_jax.data_prep.sources.videos import find_videos, read_video
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from clipsep_jax.encoders.registry import load_encoder
from clipsep_jax.evaluation import protocols
from clipsep_jax.official import arguments
from clipsep_jax.official.checkpoint import export_official_layout
from tests.data_prep.made_media import grey_pictures, make_video, tone
from tests.data_prep.test_sources import make_official, write_wav
from tests.separation.inputs import noise
from tests.small import LABELS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

# What a document may name without making it.
MODELS = ("runs/nit", "runs/clipsep_music", "models/nit", "runs/demo/run", "runs/other")
RECORDS = ("runs/videos", "data/mine", "data/vggsound", "data/music", "runs/music", "runs/vggsound", "RECORDS")
OTHERS = ("VIDEOS", "labels.csv", "street.wav", "runs/demo/audio", "LABELS.txt", "VECTORS.npy", "their_estimates")
OTHERS += ("best_model.pt", "train-args.json", "vggsound.csv", "videos/vggsound", "MUSIC_solo_videos.json")
OTHERS += ("videos/music", "music-test.csv", "vggsound-clean-no-music-test.csv", "DATA")
NAMES = (*MODELS, *RECORDS, *OTHERS)

_FENCE = re.compile(r"\s*```(\w*)")
_COMMENT = re.compile(r"(^|\s)#\s.*")
_COMMAND = re.compile(r"(?:^|\s)clipsep ([a-z].*?)(?= && |$)")


@dataclass(frozen=True)
class Typed:
    """A command without its "clipsep", or a block of Python.

    Attributes:
        document: its path below the checkout.
        line: its first one, counted from 1.
        text: of a command, all of its lines as one, and without comments.
        whole: of a command, what stands before it in its line too, such as `srun`.
    """

    document: str
    line: int
    text: str
    whole: str = ""
    is_python: bool = False

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def words(self) -> list[str]:
        """The arguments of a command; `...` stands for what every command of its kind needs."""
        text = self.text[:-1] if self.text.count('"') % 2 else self.text  # the end of --command="..." around it
        needed = ["--config=clipsep_nit", "--workdir=runs/nit"] if text.startswith("train") else []
        return [part for word in shlex.split(text) for part in (needed if word == "..." else [word])]


def typed_in(path: Path) -> Iterator[Typed]:
    """The commands and Python blocks of a document, in order."""
    document = path.relative_to(ROOT).as_posix()
    for first, language, lines in _blocks(path.read_text("utf-8")):
        if language == "python":
            yield Typed(document, first, dedent("\n".join(lines)), is_python=True)
            continue
        start, joined = first, ""
        for number, line in enumerate(lines, first):
            joined += _COMMENT.sub("", line).strip()
            if joined.endswith("\\"):
                joined = joined[:-1]
                continue
            for match in _COMMAND.finditer(joined):
                yield Typed(document, start, match[1], joined)
            start, joined = number + 1, ""


def _blocks(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Fenced blocks, and lines that are indented by four or more: their first line, language and lines."""
    fenced: list[str] | None = None
    indented: list[str] = []
    language, lines = "", text.splitlines()
    for number, line in enumerate([*lines, ""], 1):
        fence = _FENCE.match(line)
        if fenced is None and indented and (fence or not line.startswith("    ")):
            yield number - len(indented), "", indented
            indented = []
        if fence and fenced is None:
            fenced, language = [], fence[1]
        elif fence and fenced is not None:
            yield number - len(fenced), language, fenced
            fenced = None
        elif fenced is not None:
            fenced.append(line)
        elif line.startswith("    "):
            indented.append(line)


def make_things(folder: Path, trained: Path, clip_folder: Path) -> None:
    """Makes all that `NAMES` names: sounds, videos, lists, records, models, and what is made by them."""
    soundfile.write(_inside(folder / "street.wav"), noise(2, 9_000).T, 16_000)
    soundfile.write(_inside(folder / "runs" / "demo" / "audio" / "0_mixture.wav"), noise(9_000), 16_000)
    (folder / "LABELS.txt").write_text("\n".join(LABELS))
    np.save(folder / "VECTORS.npy", noise(len(LABELS), 4))
    _make_videos(folder)
    _make_vggsound(folder)
    _make_music(folder)
    _make_official_lists(folder)
    records = folder / "records"
    videos = find_videos(folder / "VIDEOS", folder / "labels.csv")
    write_records(videos, read_video, records, run=PoolRunner(num_workers=0))
    embed_record_set(records, load_encoder(str(clip_folder)))
    for names, source in ((RECORDS, records), (MODELS[:-1], trained)):
        for name in names:
            _inside(folder / name).symlink_to(source)
    _make_by_model(folder, trained, records)


def _inside(path: Path) -> Path:
    """A path whose folder exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _pairs(protocol: str) -> list[dict[str, str]]:
    """The pair of an official protocol that needs the shortest clips."""
    rows = csv.DictReader((protocols.PAIRS_FOLDER / protocols.OFFICIAL[protocol]).read_text().splitlines())
    return sorted(rows, key=lambda row: int(row["target_frames"]))[:1]


def _clips(protocol: str, *roles: str) -> list[tuple[str, str, int]]:
    """Name, label and seconds of the clips of that pair; they are cut in their middle by the counts of pictures."""
    return [
        (row[role], row[f"{role}_label"], int(row[f"{role}_frames"]) // 2 + 2)
        for row in _pairs(protocol)
        for role in roles
    ]


def _short_clips(split: str, *shares: tuple[float, float]) -> list[tuple[str, str, int]]:
    """Name, label and seconds of four clips whose names put them into a split."""
    names = (name for name in map("video{:06d}".format, count()) if hashed_split(name, *shares) == split)
    return [(name, LABELS[number % len(LABELS)], 2) for number, name in enumerate(islice(names, 4))]


def _write_clips(folder: Path, clips: Sequence[tuple[str, str, int]]) -> None:
    """A video of each clip, none of which looks or sounds like another."""
    folder.mkdir(parents=True)
    for number, (name, _, seconds) in enumerate(clips):
        pictures = grey_pictures(2 * seconds) + np.uint8(number)
        make_video(folder / f"{name}.mp4", tone(seconds, hz=200 + 37 * number), pictures, fps=2)


def _write_rows(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _make_videos(folder: Path) -> None:
    splits = {"train": _short_clips("train"), "validation": _short_clips("validation")}
    splits |= {"test": _clips("music+", "target", "interferer")}
    _write_clips(folder / "VIDEOS", [clip for clips in splits.values() for clip in clips])
    rows = [(f"{name}.mp4", label, split) for split, clips in splits.items() for name, label, _ in clips]
    _write_rows(folder / "labels.csv", [("video", "label", "split"), *rows])


def _make_vggsound(folder: Path) -> None:
    shares = (0.02, 0.0)  # the list has no validation split, and a hash makes one of its training videos
    train = [*_short_clips("train", shares), *_short_clips("validation", shares), *_clips("music+", "interferer")]
    test = _clips("vggsound-clean+", "target", "interferer")
    _write_clips(folder / "videos" / "vggsound", [*train, *test])
    rows = [(name, 0, label, split) for split, clips in (("train", train), ("test", test)) for name, label, _ in clips]
    _write_rows(folder / "vggsound.csv", rows)


def _make_music(folder: Path) -> None:
    clips = [*_short_clips("train"), *_short_clips("validation"), *_clips("music+", "target")]
    _write_clips(folder / "videos" / "music", clips)
    names = {label: [name for name, other, _ in clips if other == label] for _, label, _ in clips}
    (folder / "MUSIC_solo_videos.json").write_text(json.dumps({"videos": names}))


def _make_official_lists(folder: Path) -> None:
    """Lists as the official code has them, and what they name."""
    roles = {"music-test.csv": "target", "vggsound-clean-no-music-test.csv": "interferer"}
    for number, (name, role) in enumerate(roles.items()):
        rows = []
        for id, label, seconds in _clips("music+", role):
            rows.append(f"{make_official(folder / 'DATA', id, 2, seconds)},{label}")
            write_wav(folder / "DATA" / "audio" / f"{id}.wav", seconds, hz=300.0 + 200 * number)
        (folder / name).write_text("\n".join(rows))


def _make_by_model(folder: Path, trained: Path, records: Path) -> None:
    """Another system's scores and estimates, and an official checkpoint."""
    shutil.copytree(trained, folder / "runs" / "other")
    evaluate = ["evaluate", "--model", str(trained), "--records", str(records)]
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        assert main([*evaluate, "--out", str(folder / "runs" / "other" / "scores")]) == 0
        assert main([*evaluate, "--protocol", "music+", "--export-mixtures", str(folder / "their_estimates")]) == 0
        layout = export_official_layout(trained, folder / "layout")
    (layout / "checkpoints" / "best_model.pt").rename(folder / "best_model.pt")
    (layout / "train-args.json").rename(folder / "train-args.json")


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Lets commands do what no option of theirs makes small at the least size."""
    patch.setattr(arguments, "_check_sizes", lambda *_: None)  # the official code fixes those of its models
    patch.setattr(metrics, "NUM_TAPS", 16)
    patch.setattr(protocols, "_MOST_ROUNDS", 1)  # of draws, in vain where there are two clips


def copy_things(things: Path, world: Path, names: Sequence[str]) -> None:
    """Copies some of `NAMES` into a folder of a document's own."""
    for name in names:
        copy = shutil.copytree if (things / name).is_dir() else shutil.copyfile
        copy(things / name, _inside(world / name))
