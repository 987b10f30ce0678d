from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipsep_jax.queries import EmbeddingTable
from clipsep_jax.records import EncoderInfo, Record, RecordSet, decode_frame
from clipsep_jax.structures import InputError
from data_prep.ledger import Rejection, read_ledger
from data_prep.writer import write_records
from tests.data_prep.fakes import FakeEncoder, die_at_003, files_of, make_inputs, read_fake, read_nothing


def write(out: Path, inputs=None, read=read_fake, **options):
    options = {"num_workers": 0, "block_size": 4} | options
    return write_records(make_inputs(10) if inputs is None else inputs, read, out, **options)


def stop_at(number: int):
    def read(path: Path, id: str, label: str) -> Record | Rejection:
        if int(path.stem) == number:
            raise KeyboardInterrupt
        return read_fake(path, id, label)

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
    shards = [f"{split}-{n:05d}.tfrecord" for split in ("test", "train") for n in range(3)]
    shards.remove("test-00002.tfrecord")
    indexes = [f"{name}.index.jsonl" for name in shards]
    assert names == sorted(["ledger.jsonl", "manifest.json", *shards, *indexes])


def test_embeddings_are_those_of_the_stored_pictures(tmp_path):
    manifest = write(tmp_path / "out", encoder=FakeEncoder())
    assert manifest.encoder == EncoderInfo("fake", "0" * 64, 3)
    for record in RecordSet(tmp_path / "out").split("train"):
        wanted = [decode_frame(jpeg).mean(axis=(0, 1), dtype=np.float32) for jpeg in record.frames]
        np.testing.assert_allclose(record.frame_embeddings, wanted, rtol=1e-5)
    table = EmbeddingTable.load(tmp_path / "out" / "label_embeddings.safetensors")
    assert table.labels == ("cat", "dog")
    assert table.lookup("dog")[0] == len("a photo of dog")


def test_unlabeled_records_have_no_label_table(tmp_path):
    inputs = [replace(source, label="") for source in make_inputs(3)]
    manifest = write(tmp_path / "out", inputs, encoder=FakeEncoder())
    assert manifest.labels == {}
    assert not (tmp_path / "out" / "label_embeddings.safetensors").exists()


@pytest.mark.parametrize("number", [0, 3, 4, 9])
def test_a_rerun_goes_on_after_the_last_finished_block(tmp_path, number):
    write(tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write(out, read=stop_at(number))
    assert not (out / "manifest.json").exists()
    finished = {path: path.stat() for path in out.glob("*.tfrecord*")}
    assert {int(path.name.split("-")[1][:5]) for path in finished} == set(range(number // 4))
    read = []

    def count(path: Path, id: str, label: str) -> Record | Rejection:
        read.append(int(path.stem))
        return read_fake(path, id, label)

    write(out, read=count)
    assert read == list(range(number // 4 * 4, 10))
    assert all(
        (path.stat().st_mtime_ns, path.stat().st_ino) == (s.st_mtime_ns, s.st_ino) for path, s in finished.items()
    )
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    manifest = write(tmp_path / "out", command=("first",))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert write(tmp_path / "out", read=stop_at(0), command=("second",)) == manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_of_other_inputs_or_options_is_refused(tmp_path, finished):
    out = tmp_path / "out"
    if finished:
        write(out)
    else:
        with pytest.raises(KeyboardInterrupt):
            write(out, read=stop_at(5))
    before = files_of(out)
    for options in ({"inputs": make_inputs(9)}, {"block_size": 5}, {"encoder": FakeEncoder()}):
        with pytest.raises(InputError, match="other inputs or options"):
            write(out, **options)
    assert files_of(out) == before


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


def test_a_bad_template_is_refused_before_the_work(tmp_path):
    with pytest.raises(InputError, match=r"must hold \{\} once"):
        write(tmp_path / "out", template="a photo")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_workers_give_the_same_bytes_in_the_same_order(tmp_path):
    write(tmp_path / "here", make_inputs(40))
    write(tmp_path / "there", make_inputs(40), num_workers=2)
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")


@pytest.mark.slow
def test_a_worker_that_dies_is_an_input_error_that_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"worker process died while it read one of .*003\.mp4"):
        write(tmp_path / "out", read=die_at_003, block_size=2, num_workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()
    write(tmp_path / "out", block_size=2)
    write(tmp_path / "whole", block_size=2)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
