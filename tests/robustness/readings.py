"""What strangers hand us, as small good folders, each with what reads it."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clipsep_jax.data.record import Record
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.data_prep.download import DOWNLOAD_LEDGER_NAME, download
from clipsep_jax.data_prep.pool import Reader
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.data_prep.sources.music import read_list
from clipsep_jax.data_prep.verify import verify
from clipsep_jax.data_prep.writer import Block, PoolRunner, Runner, write_block, write_records
from clipsep_jax.encoders.clip import load_clip
from clipsep_jax.errors import InputError
from clipsep_jax.files import write_json, write_json_lines
from clipsep_jax.model_dir import describe, open_model_dir
from clipsep_jax.official.arguments import read_train_args
from clipsep_jax.training.members import GIVEN_UP_NAME
from clipsep_jax.training.sweep_report import summarise_member
from tests.small import make_record

OLD_FILES = Path(__file__).parents[1] / "old_files"


@dataclass(frozen=True)
class Reading:
    """A folder of one kind.

    Attributes:
        make: writes a good one, given the folders of a trained model and of its encoder.
        json_files: those of its files that hold JSON.
        read: reads all of it.
    """

    make: Callable[[Path, Path, Path], object]
    json_files: tuple[str, ...]
    read: Callable[[Path], object]


def _read_model(folder: Path) -> None:
    model = open_model_dir(folder)
    describe(model)
    model.load_model()


def _read_encoder(folder: Path) -> None:
    load_clip(str(folder)).tokenize(["a photo of buzz"])


def _read_records(folder: Path) -> None:
    records = RecordSet(folder)
    for name in records.splits:
        records.split(name)
    list(verify(folder))


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
    write_json(folder / "labels.json", {"buzz": 0, "hum": 1})


def _read_official_run(folder: Path) -> None:
    arguments = read_train_args(folder / "train-args.json")
    arguments.changes(by_clip=True)
    arguments.labels(2)
    arguments.sentence_table(6)


def _make_sweep_member(folder: Path, *_: Path) -> None:
    shutil.copytree(OLD_FILES / "sweep" / "gamma=0.5", folder)
    write_json(folder / GIVEN_UP_NAME, {"step": 2, "reason": "no finite loss"})


def _make_lists(folder: Path, *_: Path) -> None:
    folder.mkdir()
    write_json(folder / "music.json", {"videos": {"violin": ["a", "b"], "flute": ["c"]}})
    write_json_lines(folder / DOWNLOAD_LEDGER_NAME, [{"id": "a", "status": "downloaded", "file": "a.mp4"}])


def _read_lists(folder: Path) -> None:
    list(read_list(folder / "music.json"))
    download([], folder)


READINGS = {
    "model": Reading(lambda folder, model, _: shutil.copytree(model / "best", folder), ("config.json",), _read_model),
    "encoder": Reading(
        lambda folder, _, encoder: shutil.copytree(encoder, folder),
        ("config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"),
        _read_encoder,
    ),
    "records": Reading(
        lambda folder, *_: shutil.copytree(OLD_FILES / "records", folder),
        ("manifest.json", "features.json", "dataset_info.json", "train-00000.tfrecord.index.jsonl"),
        _read_records,
    ),
    "unfinished records": Reading(_make_unfinished_records, ("parts/00000.json", "plan.json"), _write_records),
    "official run": Reading(_make_official_run, ("train-args.json", "labels.json"), _read_official_run),
    "sweep member": Reading(
        _make_sweep_member, (GIVEN_UP_NAME, "metrics.jsonl"), lambda folder: summarise_member(folder, {}, {})
    ),
    "lists": Reading(_make_lists, ("music.json", DOWNLOAD_LEDGER_NAME), _read_lists),
}


def refused(read: Callable[[], object]) -> str:
    """The sentence with which reading is refused; empty if it is not."""
    try:
        read()
    except InputError as error:
        return str(error)
    return ""
