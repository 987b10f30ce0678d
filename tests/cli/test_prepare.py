"""`clipsep prepare ...` as a user types it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clipsep_jax.cli import prepare as commands
from clipsep_jax.cli.main import main
from clipsep_jax.data.record_set import RecordSet, read_manifest
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.scores import evaluation_of
from clipsep_jax.separation.separator import Separator
from clipsep_jax.training.loop import train
from tests.data_prep.fakes import files_of
from tests.data_prep.made_media import grey_pictures, make_video, tone
from tests.small import QUERY_SIZE, small_config


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `clipsep prepare` with arguments; gives the exit code, output, and last line of errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        words = ["prepare", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", ["clipsep", *words])
        code = main(words)
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        return code, output.out, output.err.strip().splitlines()[-1] if output.err.strip() else ""

    return run


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Ten recordings of two labels with a table, and one that is silent."""
    folder = tmp_path_factory.mktemp("recordings")
    rows = ["audio,label,split"]
    for number in range(11):
        level = 0.0 if number == 10 else 0.3
        soundfile.write(folder / f"{number}.wav", level * tone(1.5, 16_000, 200.0 + 40 * number, (1.0,))[0], 16_000)
        rows.append(f"{number}.wav,{('hum', 'buzz')[number % 2]},{('train', 'validation', 'test')[number % 3]}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.slow
def test_recordings_are_prepared_reported_and_verified(command, recordings, tmp_path):
    out = tmp_path / "records"
    code, output, _ = command(
        "audio", recordings, "--labels", recordings / "labels.csv", "--out", out, "--audio", "flac"
    )
    assert code == 0
    assert output.splitlines()[-1] == f"10 records are in {out}."
    assert "silent" in output
    assert command("verify", out)[:2] == (0, f"{out} is intact.\n")
    code, output, _ = command("report", out, "--out", tmp_path / "report")
    assert code == 0
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"coverage.csv", "loudness.png"}
    assert "hum" in output
    shard = next(out.glob("train-*.tfrecord"))
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    code, output, error = command("verify", out)
    assert code == 2
    assert output.startswith(f"{shard}: record 0 is damaged")
    assert error == f"clipsep: {out} is damaged: 1 problems, listed above."


@pytest.mark.slow
def test_manifests_do_not_depend_on_who_prepared_and_where(command, recordings, tmp_path):
    common = ("audio", recordings, "--labels", recordings / "labels.csv")
    assert command(*common, "--out", tmp_path / "a", "--workers", 1)[0] == 0
    assert command(*common, f"--out={tmp_path / 'b'}", "--workers=2", "--max-rejected", 0.5, "--time-limit", 99)[0] == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert read_manifest(tmp_path / "a").command == ("clipsep", "prepare", *map(str, common))


@pytest.mark.slow
def test_too_many_rejected_inputs_are_said_in_one_sentence(command, recordings, tmp_path):
    code, _, error = command("audio", recordings, "--out", tmp_path / "out", "--max-rejected", 0.05)
    assert code == 2
    assert error.startswith("clipsep: 1 of 11 inputs were rejected (1 silent), a share of 0.09; see")
    assert (tmp_path / "out" / "ledger.jsonl").is_file()
    assert command("audio", recordings, "--out", tmp_path / "out")[0] == 0


@pytest.mark.slow
def test_embeddings_can_be_made_along_and_are_continued(command, clip_folder, tmp_path):
    (tmp_path / "videos").mkdir()
    for number in range(3):
        make_video(tmp_path / "videos" / f"{number}.mp4", tone(2.0, hz=300.0 + 90 * number), grey_pictures(20))
    arguments = ("videos", tmp_path / "videos", "--out", tmp_path / "out")
    assert command(*arguments)[0] == 0
    assert RecordSet(tmp_path / "out").encoder is None
    assert command(*arguments, "--clip", clip_folder)[0] == 0
    records = RecordSet(tmp_path / "out")
    assert records.encoder is not None
    assert all(record.frame_embeddings is not None for name in records.splits for record in records.split(name))
    before = files_of(tmp_path / "out")
    assert command(*arguments, "--clip", clip_folder)[0] == 0
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("audio", "nowhere", "--out", "o"), "There is no folder nowhere"),
        (("vggsound", "--csv", "v.csv", "--videos", ".", "--out", "o"), "There is no file v.csv"),
        (("music", "--json", "m.json", "--videos", ".", "--out", "o"), "There is no file m.json"),
        (("official", "train.csv", "--root", "nowhere", "--out", "o"), "There is no folder nowhere"),
        (("download", "list.txt", "--out", "o"), "There is no file list.txt"),
        (("verify", "nowhere"), "nowhere holds no complete records"),
        (("report", "nowhere"), "There is no nowhere/ledger.jsonl"),
    ],
)
def test_missing_files_are_named(command, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, error = command(*arguments)
    assert code == 2
    assert error.startswith(f"clipsep: {words}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "arguments", "words"),
    [
        ("v.mp4", b"\x00\xff\xfe" * 50, ("download", "v.mp4", "--out", "o"), "v.mp4 is not a list of ids"),
        ("l.txt", b"abc\n", ("download", "l.txt", "--out", "o", "--url", "http://{x}/"), "must hold {} once"),
        (
            "v.csv",
            b"id," + b"9" * 400 + b",dog,train",
            ("vggsound", "--csv", "v.csv", "--videos", ".", "--out", "o"),
            "",
        ),
        (
            "test.csv",
            b"a.wav,a," + b"9" * 5000,
            ("official", "test.csv", "--root", ".", "--out", "o"),
            "test.csv, line 1",
        ),
        (
            "m.json",
            b"[" * 100_000,
            ("music", "--json", "m.json", "--videos", ".", "--out", "o"),
            "m.json is not a list",
        ),
    ],
)
def test_odd_content_is_one_sentence(command, tmp_path, monkeypatch, name, content, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    code, _, error = command(*arguments)
    assert code == 2
    assert words in error
    assert error.count(". ") == 0


def test_a_ledger_without_lines_has_a_report(command, tmp_path):
    (tmp_path / "ledger.jsonl").touch()
    assert command("report", tmp_path)[0] == 0


@pytest.mark.slow
def test_records_stay_whole_while_they_are_embedded(command, tmp_path, monkeypatch, clip_folder):
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "a.mp4", tone(2.0), grey_pictures(20))
    arguments = ("videos", tmp_path / "videos", "--out", tmp_path / "out")
    assert command(*arguments)[0] == 0

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clipsep_jax.data_prep.embed_set.embed_records", stop)
        code, _, error = command(*arguments, "--clip", clip_folder)
    assert (code, error) == (130, "clipsep: interrupted; run the same command again to resume.")
    assert command(*arguments)[0] == 0
    assert command("verify", tmp_path / "out")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("clipsep_jax.data_prep.embed_set.move_all", stop)  # when some files are new and some are old
        assert command(*arguments, "--clip", clip_folder)[0] == 130
    assert "finish `clipsep prepare embed`" in command("verify", tmp_path / "out")[2]
    assert command(*arguments)[0] == 0
    assert command("verify", tmp_path / "out")[0] == 0
    assert RecordSet(tmp_path / "out").query_size == QUERY_SIZE


@pytest.mark.parametrize("module", ["apache_beam", "yt_dlp"])
def test_a_missing_extra_is_named(command, recordings, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "clipsep_jax.data_prep.beam", raising=False)
    (tmp_path / "list.txt").write_text("aaaaaaaaaaa\n")
    if module == "apache_beam":
        code, _, error = command("audio", recordings, "--out", tmp_path / "out", "--runner", "FlinkRunner")
    else:
        code, _, error = command("download", tmp_path / "list.txt", "--out", tmp_path / "out")
    assert code == 2
    assert "pip install 'clipsep-jax[" in error


def test_an_option_of_beam_needs_beam(command, recordings, tmp_path):
    code, _, error = command("audio", recordings, "--out", tmp_path / "out", "--beam-option=--flink_master=x")
    assert (code, error) == (2, "clipsep: --beam-option needs --runner.")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--max-rejected", "1.5"),
        ("--audio", "mp3"),
        ("--workers", "0"),
        ("--runer", "x"),
        ("--time-limit", "0"),
        ("--time-limit", "nan"),
    ],
)
def test_a_wrong_option_is_refused(wrong, recordings, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "audio", str(recordings), "--out", str(tmp_path / "out"), *wrong])
    assert stop.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_every_source_has_help_that_teaches(capsys):
    for name in ("videos", "audio", "vggsound", "music", "official", "download", "embed"):
        with pytest.raises(SystemExit) as stop:
            main(["prepare", name, "--help"])
        assert stop.value.code == 0
        assert f"  clipsep prepare {name} " in capsys.readouterr().out


def test_the_command_that_is_remembered_is_without_what_changes_nothing():
    words = [
        "prepare",
        "videos",
        "V",
        "--workers",
        "3",
        "--out=x",
        "--audio",
        "flac",
        "--runner",
        "--out",
        "--clip",
        "C",
    ]
    assert commands._remembered(words) == ["prepare", "videos", "V", "--audio", "flac", "--clip", "C"]


@pytest.mark.slow
def test_text_queries_are_learned_from_recordings_alone(command, recordings, clip_folder, tmp_path):
    out = tmp_path / "records"
    assert command("audio", recordings, "--labels", recordings / "labels.csv", "--out", out)[0] == 0
    assert command("embed", out, "--encoder", f"clip:{clip_folder}")[0] == 0
    config = small_config(out)
    config = replace(config, data=replace(config.data, batch_size=1))
    with pytest.raises(InputError, match="4 clips of the split 'train' have no pictures"):
        train(config, tmp_path / "image")
    train(replace(config, query=replace(config.query, kind="text")), tmp_path / "text")
    evaluation = evaluation_of(Separator.load(tmp_path / "text"), RecordSet(out), "test", num_mixtures=2)
    assert evaluation.kinds == ("text",)
    summary, _ = evaluation.run()
    assert np.isfinite(summary["text"]["sdr_mean"])
