"""Commands as a user types them: good input, bad input, exit codes, nothing half-written."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import clipsep_jax
from clipsep_jax.cli.main import main
from clipsep_jax.queries.table import EmbeddingTable
from tests.data_prep import made_media as media


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "street.wav"
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.uniform(-0.3, 0.3, (44_100, 2)), 44_100)
    return path


def refuses(capsys, *arguments: str) -> str:
    """Runs a command that must fail with exit code 2, and returns its one sentence."""
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("clipsep: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


@pytest.mark.slow
def test_separate_writes_target_and_residual(trained, wav, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["separate", str(wav), "--model", str(trained), "--out", str(out), "--residual"]
    assert main([*arguments, "--query", "a photo of Buzz!"]) == 0
    assert capsys.readouterr().out.split() == [
        str(out / "street_a-photo-of-buzz.wav"),
        str(out / "street_residual.wav"),
    ]
    sounds = [soundfile.read(path) for path in sorted(out.iterdir())]
    assert [(len(sound), rate) for sound, rate in sounds] == [(44_100, 44_100)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_separate_reads_compressed_sound(trained, tmp_path, suffix):
    path = tmp_path / f"sound.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.3, 0.3, 16_000), 16_000)
    assert main(["separate", str(path), "--model", str(trained), "--query", "buzz", "--out", str(tmp_path / "o")]) == 0
    length = len(soundfile.read(tmp_path / "o" / "sound_buzz.wav")[0])
    assert abs(length - 16_000) <= (1152 * 2 if suffix == "mp3" else 0)


def test_separate_reads_a_video(trained, tmp_path):
    path = media.make_video(tmp_path / "clip.mp4", media.tone(2.0), media.grey_pictures(20))
    assert main(["separate", str(path), "--model", str(trained), "--query", "buzz", "--out", str(tmp_path / "o")]) == 0
    assert (tmp_path / "o" / "clip_buzz.wav").is_file()


def test_a_long_query_is_cut_and_said_so(trained, wav, tmp_path, capsys):
    arguments = ["separate", str(wav), "--model", str(trained), "--query", "word " * 500, "--out", str(tmp_path / "o")]
    assert main(arguments) == 0
    assert "was cut at 77 tokens" in capsys.readouterr().err


_WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

class WithoutTorch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "torch" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
"""


@pytest.mark.slow
def test_only_our_own_sentences_reach_the_user(trained, wav, tmp_path):
    """Where PyTorch is not installed, transformers would advise to install it."""
    arguments = ["separate", str(wav), "--model", str(trained), "--query", "buzz", "--out", str(tmp_path / "out")]
    code = _WITHOUT_TORCH + f"from clipsep_jax.cli.main import main; sys.exit(main({arguments}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line and " left, " not in line and line.strip()]  # the bar
    assert (done.returncode, lines) == (0, [])
    code = _WITHOUT_TORCH + f"import clipsep_jax; clipsep_jax.load({str(trained)!r}).embed(['a buzz'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_given_as_a_file_is_named(trained, tmp_path, capsys):
    folder = str(tmp_path)
    for arguments in (
        ["separate", "a.wav", "--list", folder, "--model", str(trained), "--query", "buzz", "--out", "out"],
        ["separate", "a.wav", "--model", str(trained), "--image", folder, "--out", "out"],
        ["prepare", "table", folder, folder, "--out", "table.safetensors"],
        ["prepare", "videos", folder, "--labels", folder, "--out", "out"],
        ["prepare", "download", folder, "--out", "out"],
        ["prepare", "music", "--json", folder, "--videos", folder, "--out", "out"],
        ["prepare", "official", folder, "--root", folder, "--out", "out"],
        ["import-torch", folder, "out"],
        ["import-torch", folder + "/x.pt", "out", "--train-args", folder],
        ["train", f"--config={folder}.py", "--workdir=w"],
    ):
        assert folder in refuses(capsys, *arguments)


def test_a_name_that_no_file_can_have_is_an_input_error(trained, tmp_path, capsys):
    name, out = "n" * 5_000, str(tmp_path / "out")
    for arguments in (
        ["separate", name + ".wav", "--model", str(trained), "--query", "buzz", "--out", out],
        ["separate", "a.wav", "--model", name, "--query", "buzz", "--out", out],
        ["prepare", "embed", str(tmp_path), "--encoder", name],
        ["import-torch", name + ".pt", out],
        ["train", "--config=configs/clipsep.py", f"--workdir={out}", f"--config.data.records={name}"],
    ):
        assert name in refuses(capsys, *arguments)


@pytest.mark.slow
def test_evaluate_prints_a_table_and_compare_says_what_is_better(trained, clip_records, tmp_path, capsys):
    out = tmp_path / "run" / "scores"
    arguments = ["--records", str(clip_records), "--num-mixtures", "6", "--out", str(out)]
    assert main(["evaluate", "--model", str(trained), *arguments]) == 0
    output = capsys.readouterr().out
    assert "ideal_binary_mask (oracle)" in output
    assert "An oracle knows the true sources" in output
    for title in ("SDR mean", "SI-SDR mean", "SDR (BSS Eval v3) mean", "SIR mean", "SAR mean"):
        assert title in output
    assert "queries let more of their own source through" in output
    assert output.strip().endswith("scores.json.")
    assert {"out_against_in.png", "histogram.png", "by_label.png", "confusion_text.png"} <= {
        path.name for path in out.iterdir()
    }
    assert main(["compare", f"{out}:ideal_binary_mask", f"{out}:text", "--out", str(tmp_path / "compared")]) == 0
    output = capsys.readouterr().out
    assert "run:ideal_binary_mask is better than run:text" in output
    assert (tmp_path / "compared" / "compare.tex").is_file()
    assert main(["compare", f"{out}:text", f"{out}:image", "--metric", "sir", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "system,SIR mean (dB),s.e.,median,mixtures"


@pytest.mark.slow
def test_other_systems_are_scored_on_exported_mixtures(trained, clip_records, tmp_path, capsys):
    """An estimate that is the mixture gets the mixture's score."""
    drawn = ["--records", str(clip_records), "--num-mixtures", "4"]
    assert main(["evaluate", "--model", str(trained), *drawn, "--export-mixtures", str(tmp_path / "mixtures")]) == 0
    assert "4 mixtures are in" in capsys.readouterr().out
    index = json.loads((tmp_path / "mixtures" / "mixtures.json").read_text())
    assert [len(line["interferers"]) for line in index["mixtures"]] == [1] * 4
    shutil.copytree(tmp_path / "mixtures", tmp_path / "theirs")
    out, metrics = tmp_path / "scores", ["--metrics", "si_sdr,sir"]
    command = ["evaluate", "--model", str(trained), *drawn, "--estimates", str(tmp_path / "theirs"), *metrics]
    assert main([*command, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "mixtures.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    for row in rows:
        assert row["si_sdr_theirs"] == pytest.approx(row["si_sdr_mixture"], abs=1e-4)
        assert row["sir_theirs"] == pytest.approx(row["sir_mixture"], abs=1e-4)
    path = tmp_path / "theirs" / index["mixtures"][0]["file"]
    sound, rate = soundfile.read(path)
    for broken, words in (((sound[:-1], rate), "samples at 16000 Hz"), ((sound, 8000), "at 8000 Hz")):
        soundfile.write(path, *broken)
        capsys.readouterr()
        assert words in refuses(capsys, *command)
    soundfile.write(path, np.full_like(sound, np.nan), rate, subtype="FLOAT")
    assert main(command) == 0
    assert "theirs: 1 not counted (not finite)." in capsys.readouterr().out
    path.unlink()
    assert "needs an estimate of each mixture" in refuses(capsys, *command)
    for name in ("target", "text_and_image", "best_mask", "sir_of_mine", "wrong_query"):
        (tmp_path / name).mkdir()
        command[command.index("--estimates") + 1] = str(tmp_path / name)
        assert "has a name that scores use already" in refuses(capsys, *command)


def test_wrong_choices_of_evaluate_and_compare_are_refused(trained, clip_records, tmp_path, capsys):
    with_model = ["evaluate", "--model", str(trained), "--records", str(clip_records)]
    templates = tmp_path / "templates.txt"
    templates.write_text("a photo of {}\na photo\n")
    for arguments, words in (
        (["evaluate", "--records", str(clip_records)], "nothing to score"),
        (["evaluate", "--model", str(trained)], "Give --records, or both --targets and --interferers"),
        ([*with_model, "--targets", str(clip_records)], "Give --records, or both"),
        ([*with_model, "--protocol", "music"], "no protocol 'music'"),
        ([*with_model, "--protocol", "music+"], "No pair of music+ has both clips"),
        ([*with_model, "--metrics", "sdr,snr"], "no metric 'snr'; give some of sdr, si_sdr"),
        ([*with_model, "--prompt", "a photo"], "must hold {} once"),
        ([*with_model, "--prompts", str(templates)], "'a photo' must hold {} once"),
        ([*with_model, "--prompt", "{}", "--prompts", str(templates)], "either --prompt or --prompts"),
        ([*with_model, "--num-sources", "1"], "at least 2 sources"),
        ([*with_model, "--protocol", "music+", "--seed", "1"], "--seed does nothing with --protocol music+"),
        ([*with_model, "--export-mixtures", str(tmp_path / "m"), "--masks", "binary"], "--masks does nothing with an"),
        (["evaluate", "--records", str(clip_records), "--estimates", "e", "--noise", "first"], "--noise does nothing"),
        ([*with_model, "--estimates", str(tmp_path / "none")], "There is no folder"),
        (["compare", str(tmp_path)], "at least two different ones"),
        (["compare", str(tmp_path), str(tmp_path / "b")], "There is no"),
        (["compare", "a", "b", "--metric", "snr"], "no metric 'snr'"),
    ):
        assert words in refuses(capsys, *arguments), arguments


def test_info_says_what_a_model_is(trained, capsys):
    assert main(["info", str(trained)]) == 0
    assert "noise_invariant" in capsys.readouterr().out


def test_checkpoints_go_to_pytorch_and_back(trained, tmp_path, capsys):
    import torch

    assert main(["export-torch", str(trained), str(tmp_path / "model.pt")]) == 0
    assert all(name.startswith("module.") for name in torch.load(tmp_path / "model.pt", weights_only=True))
    assert main(["import-torch", str(tmp_path / "model.pt"), str(tmp_path / "back")]) == 0
    assert main(["info", str(tmp_path / "back")]) == 0
    assert "noise_invariant" in capsys.readouterr().out
    back, first = (clipsep_jax.load(path) for path in (tmp_path / "back", trained))
    magnitude = np.abs(np.random.default_rng(0).normal(size=(513, 8))).astype(np.float32)
    query = np.random.default_rng(1).normal(size=(2, 6)).astype(np.float32)
    logits = [separator.mask_logits(magnitude, query) for separator in (back, first)]
    assert logits[0].query.shape == (2, 256, 8)
    np.testing.assert_array_equal(logits[0].query, logits[1].query)
    np.testing.assert_array_equal(logits[0].noise, logits[1].noise)


def test_foreign_checkpoints_are_refused(trained, tmp_path, capsys):
    text, out = tmp_path / "text.pt", tmp_path / "out"
    text.write_text("no checkpoint")
    assert "text.pt" in refuses(capsys, "import-torch", str(text), str(out))
    assert "no.pt" in refuses(capsys, "import-torch", str(tmp_path / "no.pt"), str(out))
    assert "nothing to write" in refuses(capsys, "export-torch", str(trained))
    assert not out.exists()


def test_table_of_sentences_is_made_from_labels_and_vectors(tmp_path, capsys):
    labels, vectors, out = tmp_path / "labels.txt", tmp_path / "vectors.npy", tmp_path / "table.safetensors"
    labels.write_text("dog\ncat\n")
    np.save(vectors, np.eye(2, 5))
    assert main(["prepare", "table", str(labels), str(vectors), "--out", str(out)]) == 0
    np.testing.assert_array_equal(EmbeddingTable.load(out).lookup("cat"), np.eye(2, 5, dtype=np.float32)[1])
    np.save(vectors, np.eye(3))
    assert "one vector for each" in refuses(capsys, "prepare", "table", str(labels), str(vectors), "--out", str(out))
    beyond = np.full((2, 3), 1e300)  # finite in float64 alone
    for wrong in (
        np.full((2, 3), np.nan),
        np.full((2, 3), np.inf),
        beyond,
        np.ones((2, 3), int),
        np.ones((2, 3), complex),
    ):
        np.save(vectors, wrong)
        told = refuses(capsys, "prepare", "table", str(labels), str(vectors), "--out", str(out))
        assert "do not make a table" in told
    np.save(vectors, np.array([{}, {}]), allow_pickle=True)
    assert "do not make a table" in refuses(capsys, "prepare", "table", str(labels), str(vectors), "--out", str(out))


def test_bad_sound_files_are_refused(trained, tmp_path, capsys):
    empty, text = tmp_path / "empty.wav", tmp_path / "text.wav"
    soundfile.write(empty, np.zeros((0, 1)), 16_000)
    text.write_text("this is no sound")
    out = tmp_path / "out"
    for path, message in (
        (empty, "no audio could be decoded"),
        (text, "cannot be read as sound"),
        (tmp_path / "no.wav", "no such file"),
    ):
        said = refuses(capsys, "separate", str(path), "--model", str(trained), "--query", "x", "--out", str(out))
        assert message in said
        assert str(path) in said
    assert not out.exists()


def test_text_named_mp4_is_refused(trained, tmp_path, capsys):
    path = tmp_path / "text.mp4"
    path.write_text("this is no video")
    said = refuses(capsys, "separate", str(path), "--model", str(trained), "--query", "x", "--out", str(tmp_path / "o"))
    assert str(path) in said


def test_folders_without_videos_are_refused(tmp_path, capsys):
    out = tmp_path / "records"
    assert "no-such" in refuses(capsys, "prepare", "videos", str(tmp_path / "no-such"), "--out", str(out))
    (tmp_path / "empty").mkdir()
    assert "empty" in refuses(capsys, "prepare", "videos", str(tmp_path / "empty"), "--out", str(out))
    assert not out.exists()


def test_models_without_weights_are_refused(tmp_path, wav, capsys):
    (tmp_path / "model").mkdir()
    out = str(tmp_path / "out")
    said = refuses(capsys, "separate", str(wav), "--model", str(tmp_path / "model"), "--query", "x", "--out", out)
    assert "holds no trained model" in said


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.train.stepz=3"], 'Did you mean "steps"'),
        (["--config.train.steps=many"], "many"),
        (["--steps=3"], "steps"),
        (["--config.objective.name=mse"], "must be one of"),
        (["--config.data.records=/no/such/records"], "/no/such/records"),
        (["--coordinator=node1", "--num-processes=2", "--process-id=0"], "node1 is not HOST:PORT"),
        (["--coordinator=node1:1234"], "go together"),
    ],
)
def test_bad_training_options_are_refused(tmp_path, capsys, extra, message):
    workdir = tmp_path / "run"
    said = refuses(capsys, "train", "--config=configs/clipsep_nit.py:music", f"--workdir={workdir}", *extra)
    assert message in said
    assert not workdir.exists()


def test_missing_config_and_data_set_are_refused(tmp_path, capsys):
    workdir = f"--workdir={tmp_path / 'run'}"
    assert "no config" in refuses(capsys, "train", "--config=configs/nope.py", workdir)
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:")
    assert "invalid syntax" in refuses(capsys, "train", f"--config={broken}", workdir)
    assert "no data set 'musik'" in refuses(capsys, "train", "--config=configs/clipsep.py:musik", workdir)


def test_help_teaches(capsys):
    for command in ("--help", "train --help", "prepare videos --help", "separate --help", "demo --help"):
        with pytest.raises(SystemExit) as stop:
            main(command.split())
        assert stop.value.code == 0
        assert "usage: clipsep" in capsys.readouterr().out


def test_unknown_options_are_refused(trained, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["info", str(trained), "--verbos"])
    assert stop.value.code == 2
    assert "--verbos" in capsys.readouterr().err
