"""Texts of strangers reach the terminal as text."""

import io
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from clipsep_jax.cli.main import main
from clipsep_jax.data.record_set import EncoderInfo, read_manifest, write_manifest
from clipsep_jax.terminal import printable, say
from tests.small import make_records

ESCAPE = "\x1b[31mred\x1b[0m\x07\u202e\udcff\x9b"


def test_what_a_terminal_would_obey_is_spelled_out():
    assert printable("a photo of é, 犬 \t") == "a photo of é, 犬 \\t"
    assert printable(ESCAPE) == r"\x1b[31mred\x1b[0m\x07\u202e\udcff\x9b"


def test_a_terminal_of_few_letters_gets_what_it_can_show(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("é\n" + ESCAPE)
    assert stream.buffer.getvalue() == rb"\xe9" + b"\n" + printable(ESCAPE).encode() + b"\n"


def test_names_in_files_are_printable_wherever_they_are_told(tmp_path, capsys):
    """Of encoders, labels, ids and splits, in refusals, warnings and results."""
    records = make_records(tmp_path / "records", labels=("buzz", f"{ESCAPE}hiss"))
    manifest = read_manifest(records)
    info = EncoderInfo(f"owner/{ESCAPE}", "0" * 64, manifest.encoder.query_size)
    splits = {f"{ESCAPE}{name}": shards for name, shards in manifest.splits.items()}
    write_manifest(records, type(manifest)(**vars(manifest) | {"encoder": info, "splits": splits}))
    damaged = records / "train-00000.tfrecord"
    damaged.write_bytes(damaged.read_bytes()[:-9] + bytes(9))
    for arguments in (
        ["prepare", "verify", str(records)],
        ["prepare", "report", str(records), "--out", str(tmp_path / "report")],
        ["prepare", "embed", str(records), "--encoder", f"owner/{ESCAPE}"],
        ["train", "--config=clipsep", f"--workdir={tmp_path / 'w'}", f"--config.data.records={records}"],
        ["info", str(tmp_path / ESCAPE[:9])],
        ["separate", str(tmp_path / f"{ESCAPE[:9]}.wav"), "--model", "x", "--query", ESCAPE, "--out", "y"],
    ):
        main(arguments)
        captured = capsys.readouterr()
        assert not set(captured.out + captured.err) & set("\x1b\x07\u202e\udcff\x9b"), arguments


def test_no_name_begins_a_line_of_its_own(tmp_path, capsys, trained):
    folder = tmp_path / "model"
    shutil.copytree(trained / "best", folder)
    shutil.rmtree(folder / "query_encoder", ignore_errors=True)
    values = json.loads((folder / "config.json").read_text())
    values["query_encoder"]["name"] = "x\nvalidation loss 0.0"
    (folder / "config.json").write_text(json.dumps(values))
    assert main(["info", str(folder)]) == 0
    assert "encoder         x\\nvalidation loss" in capsys.readouterr().out
    records = make_records(tmp_path / "records")
    manifest = read_manifest(records)
    write_manifest(records, replace(manifest, other_files={"x\nall is intact.": "00"}))
    assert main(["prepare", "verify", str(records)]) == 2
    assert "\nall is intact" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [MemoryError(), np.exceptions.AxisError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")]
)
def test_too_little_memory_is_one_sentence(error, monkeypatch, capsys):
    def run_out(*_):
        raise error

    monkeypatch.setattr("clipsep_jax.cli.info.run", run_out)
    assert main(["info", "x"]) == 1
    assert capsys.readouterr().err == (
        "clipsep: This takes more memory than there is; give shorter input, smaller batches or a larger machine.\n"
    )


def test_other_errors_of_ours_are_not_hidden(monkeypatch):
    def fail(*_):
        raise KeyError("a bug")

    monkeypatch.setattr("clipsep_jax.cli.info.run", fail)
    with pytest.raises(KeyError):
        main(["info", "x"])
