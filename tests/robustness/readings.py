"""What strangers hand us, as small good folders, each with what reads it."""

import io
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from clipsep_jax.cli.main import main
from clipsep_jax.config import Config
from clipsep_jax.data.record import Record
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.data_prep.download import DOWNLOAD_LEDGER_NAME, download, read_ids
from clipsep_jax.data_prep.pool import Reader
from clipsep_jax.data_prep.sources.audio import read_audio
from clipsep_jax.data_prep.sources.inputs import FrameFolder, Input
from clipsep_jax.data_prep.sources.music import read_list
from clipsep_jax.data_prep.sources.official import find_official, read_official
from clipsep_jax.data_prep.sources.vggsound import find_vggsound
from clipsep_jax.data_prep.sources.videos import find_videos, read_video
from clipsep_jax.data_prep.verify import verify
from clipsep_jax.data_prep.writer import Block, PoolRunner, Runner, write_block, write_records
from clipsep_jax.encoders.clip import load_clip
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.files import write_json, write_json_lines
from clipsep_jax.model_dir import describe, open_model_dir
from clipsep_jax.official.arguments import read_train_args
from clipsep_jax.official.checkpoint import export_torch
from clipsep_jax.queries.table import EmbeddingTable, read_table
from clipsep_jax.separation.presence import Fit, Presence
from clipsep_jax.sound_files import open_sound, write_sound
from clipsep_jax.training.loop import train
from clipsep_jax.training.members import GIVEN_UP_NAME
from clipsep_jax.training.sweep_report import summarise_member
from tests.data_prep.made_media import grey_pictures, make_video, tone
from tests.small import make_record

OLD_FILES = Path(__file__).parents[1] / "old_files"


@dataclass(frozen=True)
class Reading:
    """A folder of one kind.

    Attributes:
        make: writes a good one, given the folders of a trained model and of its encoder.
        read: reads all of it, and writes below another folder.
        json_files: those of its files that hold JSON.
        files: patterns of those that a stranger may have made.
        slow: whether reading takes a second or more.
    """

    make: Callable[[Path, Path, Path], object]
    read: Callable[[Path, Path], object]
    json_files: tuple[str, ...] = ()
    files: str = "**/*"
    slow: bool = False


def command(*arguments: object) -> None:
    """Run a command as a user does.

    Raises:
        InputError: it ended with a sentence.
    """
    told = io.StringIO()
    with redirect_stderr(told), redirect_stdout(io.StringIO()):
        code = main([str(argument) for argument in arguments])
    if code:
        raise InputError(told.getvalue().strip().rpartition("\n")[2])


def _copied(source: Callable[[Path, Path], Path]) -> Callable[[Path, Path, Path], object]:
    return lambda folder, model, encoder: shutil.copytree(source(model, encoder), folder)


def _make_model(folder: Path, model: Path, _: Path) -> None:
    shutil.copytree(model / "best", folder)
    references = np.zeros((2, 256, 8), np.float32)
    Presence(references, Fit(1.0, 0.0, 0.5, 0.9, 0.8, 128, 128)).save(folder)


def _read_model(folder: Path, _: Path) -> None:
    model = open_model_dir(folder)
    describe(model)
    model.load_model()
    Presence.load(model.folder, (256, 8))


def _make_separation(folder: Path, model: Path, _: Path) -> None:
    shutil.copytree(model / "best", folder / "model")
    write_sound(folder / "sound.wav", make_record(0).audio / np.float32(32_768), 16_000)


def _separate(folder: Path, out: Path) -> None:
    command("separate", folder / "sound.wav", "--model", folder / "model", "--query", "buzz", "--out", out)


def _read_encoder(folder: Path, _: Path) -> None:
    load_clip(str(folder)).tokenize(["a photo of buzz"])


def _read_records(folder: Path, _: Path) -> None:
    records = RecordSet(folder)
    for name in records.splits:
        records.split(name)
    list(verify(folder))


def _make_embedding(folder: Path, model: Path, encoder: Path) -> None:
    shutil.copytree(OLD_FILES / "records", folder / "records")
    shutil.copytree(encoder, folder / "encoder")


def _embed(folder: Path, _: Path) -> None:
    command("prepare", "embed", folder / "records", "--encoder", folder / "encoder")


def _evaluate(folder: Path, out: Path) -> None:
    # Only models without an encoder, which would have to be compiled.
    command("evaluate", "--model", OLD_FILES / "models" / "labelsep", "--records", folder, "--num-mixtures", 2)


def _make_unfinished_records(folder: Path, *_: Path) -> None:
    def stop_after_one(blocks: Sequence[Block], read: Reader, num_done: int) -> None:
        write_block(blocks[num_done], map(read, blocks[num_done].inputs))
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        _write_records(folder, stop_after_one)


def _write_records(folder: Path, run: Runner = PoolRunner(0)) -> None:  # noqa: B008
    inputs = [Input(f"clip{n}", Path(f"clip{n}"), "buzz", "train") for n in range(4)]
    write_records(inputs, _read_clip, folder, run=run, block_size=2)


def _read_clip(source: Input) -> Record:
    return make_record(int(source.id[4:]))


def _make_official_run(folder: Path, *_: Path) -> None:
    folder.mkdir()
    arguments = {"n_fft": 1024, "hop_len": 256, "win_len": 1024, "label_map_filename": "labels.json", "lr": 0.001}
    write_json(folder / "train-args.json", arguments | {"bert_embeddings": None, "train_mode": "image"})
    write_json(folder / "labels.json", {"buzz": 0, "hum": 1, "hiss": 2})


def _read_official_run(folder: Path, _: Path) -> None:
    arguments = read_train_args(folder / "train-args.json")
    arguments.changes(by_clip=True)
    arguments.labels(3)
    arguments.sentence_table(6)


def _make_checkpoint(folder: Path, *_: Path) -> None:
    _make_official_run(folder)
    export_torch(OLD_FILES / "models" / "labelsep", folder / "a.pt")
    export_torch(OLD_FILES / "models" / "clipsep", folder / "b.safetensors", safetensors=True)


def _import_checkpoint(folder: Path, out: Path) -> None:
    for name, options in (("a.pt", ["--train-args", folder / "train-args.json"]), ("b.safetensors", [])):
        if (folder / name).exists():
            command("import-torch", folder / name, out / name, *options)


def _make_sweep_member(folder: Path, *_: Path) -> None:
    shutil.copytree(OLD_FILES / "sweep" / "gamma=0.5", folder)
    write_json(folder / GIVEN_UP_NAME, {"step": 2, "reason": "no finite loss"})


def _make_workdir(folder: Path, *_: Path) -> None:
    shutil.copytree(OLD_FILES / "workdir", folder / "workdir")
    shutil.copytree(OLD_FILES / "records", folder / "records")


def _resume(folder: Path, _: Path) -> None:
    values = json.loads((OLD_FILES / "workdir" / "best" / "config.json").read_text())["config"]
    values["data"]["records"] = str(folder / "records")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        config = Config.from_config_dict(values).replace(data={"read_workers": 0})  # whose audit would see them start
        train(config, folder / "workdir", allow_changes=["data.records"])


def _make_lists(folder: Path, *_: Path) -> None:
    (folder / "videos").mkdir(parents=True)
    for name in ("a.mp4", "abcdefghijk.mp4"):
        (folder / "videos" / name).touch()
    write_json(folder / "music.json", {"videos": {"violin": ["a", "b"], "flute": ["c"]}})
    write_json_lines(folder / DOWNLOAD_LEDGER_NAME, [{"id": "a", "status": "downloaded", "file": "a.mp4"}])
    (folder / "labels.csv").write_text("video,label,split,group\na.mp4,violin,train,g\nabcdefghijk.mp4,,,\n")
    (folder / "vggsound.csv").write_text('abcdefghijk,1,"dog barking, loud",train\n')
    (folder / "train.csv").write_text("data/a.wav,data/frames/a,3,violin\n")
    (folder / "words.txt").write_text("dog\ncat\n")
    np.save(folder / "vectors.npy", np.eye(2, 5))
    EmbeddingTable(("dog", "cat"), np.eye(2, 5, dtype=np.float32)).save(folder / "table.safetensors")


def _read_lists(folder: Path, _: Path) -> None:
    for read in (
        lambda: list(read_list(folder / "music.json")),
        lambda: download([], folder),
        lambda: find_videos(folder / "videos", folder / "labels.csv"),
        lambda: find_vggsound(folder / "vggsound.csv", folder / "videos"),
        lambda: find_official([folder / "train.csv"], folder, "data/"),
        lambda: read_ids(folder / "vggsound.csv"),
        lambda: read_table(folder / "words.txt", folder / "vectors.npy"),
        lambda: EmbeddingTable.load(folder / "table.safetensors"),
    ):
        refused(read)


def _make_media(folder: Path, *_: Path) -> None:
    folder.mkdir()
    sound = make_record(0, seconds=1.2).audio
    for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "au", "caf"):
        soundfile.write(folder / f"a.{suffix}", sound, 16_000)
    (folder / "a.amr").write_bytes(b"#!AMR\n" + (b"\x3c" + bytes(31)) * 100)
    for suffix in ("mp4", "mkv", "avi"):
        make_video(folder / f"v.{suffix}", tone(1.2), grey_pictures(12))
    (folder / "f").mkdir()
    (folder / "f" / "000001.jpg").write_bytes(make_record(0).frames[0])


def _hear(path: Path) -> None:
    with open_sound(path) as sound:
        list(sound)


def _read_media(folder: Path, _: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        for path in sorted(folder.iterdir()):
            if path.name == CHANGED.get("media", path.name):
                refused(lambda path=path: _hear(path))
                read_video(Input(path.name, path, "", "train"))
                read_audio(Input(path.name, path, "", "train"))
    read_official(Input("a", folder / "a.wav", "", "train", frames=FrameFolder(folder / "f", 1)))


CHANGED: dict[str, str] = {}  # the name of the file that is not as it was, by kind, where only that need be read

READINGS = {
    "model": Reading(_make_model, _read_model, ("config.json",)),
    "encoder": Reading(
        _copied(lambda _, encoder: encoder),
        _read_encoder,
        ("config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"),
    ),
    "records": Reading(
        _copied(lambda *_: OLD_FILES / "records"),
        _read_records,
        ("manifest.json", "features.json", "dataset_info.json", "train-00000.tfrecord.index.jsonl"),
    ),
    "unfinished records": Reading(
        _make_unfinished_records, lambda folder, _: _write_records(folder), ("parts/00000.json", "plan.json")
    ),
    "official run": Reading(_make_official_run, _read_official_run, ("train-args.json", "labels.json")),
    "sweep member": Reading(
        _make_sweep_member, lambda folder, _: summarise_member(folder, {}, {}), (GIVEN_UP_NAME, "metrics.jsonl")
    ),
    "lists": Reading(_make_lists, _read_lists, ("music.json", DOWNLOAD_LEDGER_NAME)),
    "media": Reading(_make_media, _read_media),
    "checkpoint": Reading(_make_checkpoint, _import_checkpoint),
    "separation": Reading(_make_separation, _separate, slow=True),
    "embedding": Reading(_make_embedding, _embed, files="records/*", slow=True),
    "evaluation": Reading(_copied(lambda *_: OLD_FILES / "records"), _evaluate, slow=True),
    "workdir": Reading(_make_workdir, _resume, files="workdir/**/*", slow=True),
}


def refused(read: Callable[[], object]) -> str:
    """The sentence with which reading is refused; empty if it is not."""
    try:
        read()
    except InputError as error:
        return str(error)
    return ""
