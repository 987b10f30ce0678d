import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipsep_jax.data.record import Record
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.data_prep import writer
from clipsep_jax.data_prep.ledger import Rejection, read_ledger
from clipsep_jax.data_prep.pool import ReaderPool
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.data_prep.sources.videos import find_videos
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from clipsep_jax.errors import InputError
from tests.data_prep.fakes import (
    die_after_the_first_003,
    die_at_003,
    files_of,
    hang_at_003,
    make_inputs,
    read_fake,
    read_nothing,
)


def write(out: Path, inputs=None, read=read_fake, **options):
    options = {"run": PoolRunner(num_workers=0), "block_size": 4} | options
    return write_records(make_inputs(10) if inputs is None else inputs, read, out, **options)


def stop_at(number: int):
    def read(source: Input) -> Record | Rejection:
        if int(source.path.stem) == number:
            raise KeyboardInterrupt
        return read_fake(source)

    return read


def test_every_input_is_in_its_split_and_in_the_ledger(tmp_path):
    manifest = write(tmp_path / "out", command=("clipsep", "prepare"))
    assert manifest == RecordSet(tmp_path / "out").manifest
    assert manifest.counts == {"inputs": 10, "accepted": 8, "rejected": 2}
    assert manifest.labels == {"cat": 4, "dog": 4}
    records = RecordSet(tmp_path / "out")
    ids = {name: [record.id for record in records.split(name)] for name in records.splits}
    assert ids == {
        "train": ["001.mp4", "002.mp4", "005.mp4", "007.mp4", "008.mp4"],
        "test": ["000.mp4", "003.mp4", "006.mp4"],
    }
    ledger = read_ledger(tmp_path / "out" / "ledger.jsonl")
    assert [line.input for line in ledger] == [f"{n:03d}.mp4" for n in range(10)]
    assert [line.input for line in ledger if line.reason == "silent"] == ["004.mp4", "009.mp4"]
    names = sorted(files_of(tmp_path / "out"))
    shards = [f"{split}-{n:05d}.tfrecord" for split, count in (("test", 2), ("train", 3)) for n in range(count)]
    indexes = [f"{name}.index.jsonl" for name in shards]
    for_tfds = ["dataset_info.json", "features.json"]
    assert names == sorted(["ledger.jsonl", "manifest.json", *for_tfds, *shards, *indexes])


@pytest.mark.parametrize("number", [0, 3, 4, 9])
def test_a_rerun_goes_on_after_the_last_finished_block(tmp_path, number):
    write(tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write(out, read=stop_at(number))
    assert not (out / "manifest.json").exists()
    parts = list(out.glob("parts/*.json"))
    assert {int(path.stem) for path in parts} == set(range(number // 4))
    finished = {
        path.stat().st_ino: path.stat().st_mtime_ns for part in parts for path in part.with_suffix("").iterdir()
    }
    read = []

    def count(source: Input) -> Record | Rejection:
        read.append(int(source.path.stem))
        return read_fake(source)

    write(out, read=count)
    assert read == list(range(number // 4 * 4, 10))
    now = {path.stat().st_ino: path.stat().st_mtime_ns for path in out.iterdir()}
    assert finished.items() <= now.items()
    assert files_of(out) == files_of(tmp_path / "whole")


def lose_shard(out: Path) -> None:
    next((out / "parts").rglob("train.tfrecord")).unlink()


def lose_index(out: Path) -> None:
    next((out / "parts").rglob("train.tfrecord.index.jsonl")).unlink()


def cut_shard(out: Path) -> None:
    path = next((out / "parts").rglob("train.tfrecord"))
    path.write_bytes(path.read_bytes()[:-1])


def name_elsewhere(out: Path) -> None:
    path = out / "parts" / "00000.json"
    fields = json.loads(path.read_text())
    fields["shards"]["train"]["name"] = "../00001/train.tfrecord"
    path.write_text(json.dumps(fields))


def spoil(name: str, data: bytes):
    def change(out: Path) -> None:
        (out / name).write_bytes(data)

    return change


DAMAGES = {
    "no shard": lose_shard,
    "no index": lose_index,
    "half a shard": cut_shard,
    "empty part": spoil("parts/00000.json", b""),
    "half a part": spoil("parts/00000.json", b'{"shards": {"train": {"name": "tr'),
    "part of another form": spoil("parts/00000.json", b'{"shards": [], "ledger": [{"input": 3}]}'),
    "list for a part": spoil("parts/00000.json", b"[]"),
    "part of other inputs": spoil("parts/00000.json", b'{"shards": {}, "ledger": []}'),
    "part that names a file elsewhere": name_elsewhere,
    "deep part": spoil("parts/00000.json", b"[" * 100_000),
    "empty plan": spoil("plan.json", b""),
    "half a plan": spoil("plan.json", b'"ab'),
    "number for a plan": spoil("plan.json", b"3"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_block_is_read_again(tmp_path, damage):
    write(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", read=stop_at(9))
    DAMAGES[damage](tmp_path / "out")
    write(tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_shard_that_is_lost_while_the_run_finishes_is_written_again(tmp_path, monkeypatch):
    write(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_manifest", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out")
    for path in sorted((tmp_path / "out").glob("train-*.tfrecord"))[::2]:
        path.unlink()
    write(tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def raise_interrupt(*_) -> None:
    raise KeyboardInterrupt


def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    manifest = write(tmp_path / "out", command=("first",))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert write(tmp_path / "out", read=stop_at(0), command=("second",)) == manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert "nothing to read" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_inputs_or_options_is_refused(tmp_path, finished):
    out = tmp_path / "out"
    if finished:
        write(out)
    else:
        with pytest.raises(KeyboardInterrupt):
            write(out, read=stop_at(5))
    before = files_of(out)
    for options in ({"inputs": make_inputs(9)}, {"block_size": 5}, {"audio_encoding": "flac"}):
        with pytest.raises(InputError, match="other inputs or options"):
            write(out, **options)
    assert files_of(out) == before


def test_another_reader_or_option_of_it_is_another_run(tmp_path):
    write(tmp_path / "out", reading="videos")
    with pytest.raises(InputError, match="other inputs or options"):
        write(tmp_path / "out", reading="audio")


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    def read_and_write_again(source: Input) -> Record | Rejection:
        with pytest.raises(InputError, match="Another process is writing to"):
            write(tmp_path / "out")
        return read_fake(source)

    write(tmp_path / "out", read=read_and_write_again)
    write(tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        find_videos(tmp_path)


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        write(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        write(tmp_path / "thesis.tex")
    assert files_of(tmp_path) == {"thesis.tex": b"precious"}


def test_a_changed_input_file_is_another_input(tmp_path):
    inputs = make_inputs(2, tmp_path / "in")
    (tmp_path / "in").mkdir()
    inputs[0].path.write_bytes(b"one")
    write(tmp_path / "out", inputs)
    inputs[0].path.write_bytes(b"three")
    with pytest.raises(InputError, match="other inputs or options"):
        write(tmp_path / "out", inputs)


def test_when_every_input_is_rejected_the_ledger_says_why(tmp_path):
    for _ in range(2):  # a rerun says the same
        with pytest.raises(
            InputError, match=r"None of the 10 inputs could be used \(10 no_audio\); see .*ledger\.jsonl"
        ):
            write(tmp_path / "out", read=read_nothing)
    assert len(read_ledger(tmp_path / "out" / "ledger.jsonl")) == 10
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_too_many_rejected_inputs_fail_after_the_ledger_is_written(tmp_path):
    assert write(tmp_path / "just enough", max_rejected=0.2).counts["rejected"] == 2
    inputs, out = [*make_inputs(10), Input("014.mp4", Path("014.mp4"), "", "train")], tmp_path / "out"
    for _ in range(2):
        with pytest.raises(InputError, match=r"3 of 11 inputs .* \(3 silent\), a share of 0\.27; .*--max-rejected"):
            write(out, inputs)
        assert sum(line.reason == "silent" for line in read_ledger(out / "ledger.jsonl")) == 3
        assert not (out / "manifest.json").exists()
    manifest = write(out, inputs, read=stop_at(0), max_rejected=0.3)  # nothing is read again
    assert manifest.counts == {"inputs": 11, "accepted": 8, "rejected": 3}


def test_flac_records_are_equal_and_smaller(tmp_path):
    pcm16, flac = (write(tmp_path / name, audio_encoding=name) for name in ("pcm16", "flac"))
    assert (pcm16.audio_encoding, flac.audio_encoding) == ("pcm16", "flac")
    for split in pcm16.splits:
        first, second = (RecordSet(tmp_path / name).split(split) for name in ("pcm16", "flac"))
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a.audio, b.audio)
            assert (a.id, a.label, a.frames, b.audio.dtype) == (b.id, b.label, b.frames, np.int16)
    sizes = [sum(shard.num_bytes for s in manifest.splits.values() for shard in s) for manifest in (pcm16, flac)]
    assert sizes[1] < sizes[0]


def test_the_same_file_under_another_name_is_a_duplicate(tmp_path):
    (tmp_path / "in").mkdir()
    inputs = make_inputs(5, tmp_path / "in")
    for source, data in zip(inputs, (b"one", b"two", b"one", b"three", b"two"), strict=True):
        source.path.write_bytes(data)
    write(tmp_path / "out", inputs, max_rejected=0.5)
    ledger = read_ledger(tmp_path / "out" / "ledger.jsonl")
    assert [line.reason for line in ledger] == ["", "", "duplicate", "", "duplicate"]
    assert ledger[2].detail == "it is the same as 000.mp4"


@pytest.mark.slow
def test_workers_give_the_same_bytes_in_the_same_order(tmp_path):
    write(tmp_path / "here", make_inputs(40))
    write(tmp_path / "there", make_inputs(40), run=PoolRunner(2))
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")


@pytest.mark.slow
def test_what_may_be_the_machines_fault_is_tried_again_after_a_failed_run(tmp_path):
    out, run = tmp_path / "out", PoolRunner(1, time_limit_seconds=2.0)
    with pytest.raises(InputError, match="1 timeout"):
        write(out, read=hang_at_003, run=run, max_rejected=0.2)
    read = []

    def count(source: Input) -> Record | Rejection:
        read.append(source.id)
        return read_fake(source)

    write(out, read=count)
    assert read == [f"{n:03d}.mp4" for n in range(4)]  # the block of the one that hung
    write(tmp_path / "whole")
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_child_that_dies_while_it_reads_nothing_is_replaced(tmp_path):
    inputs = [replace(source, label=str(tmp_path / source.id)) for source in make_inputs(12)]
    with ReaderPool(die_after_the_first_003, 1, 60.0) as pool:
        outcomes = list(pool.outcomes(inputs))
    assert [outcome.id for outcome in outcomes if isinstance(outcome, Record)] == [
        source.id for source in inputs if int(source.path.stem) % 5 != 4
    ]


@pytest.mark.slow
def test_a_child_that_dies_or_hangs_costs_its_input_alone(tmp_path):
    for name, read, reason, words in (
        ("died", die_at_003, "undecodable", "its decoder died (SIGKILL)"),
        ("hung", hang_at_003, "timeout", "it took longer than 3 s"),
    ):
        write(tmp_path / name, read=read, block_size=2, run=PoolRunner(1, time_limit_seconds=3.0), max_rejected=0.5)
        ledger = read_ledger(tmp_path / name / "ledger.jsonl")
        assert (ledger[3].reason, ledger[3].detail) == (reason, words)
        assert [line.input for line in ledger if line.reason == "silent"] == ["004.mp4", "009.mp4"]
        assert sum(line.status == "accepted" for line in ledger) == 7
