"""The demo's stages and its report, at the least size; `make soak` runs it whole."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clipsep_jax.cli.main import main
from clipsep_jax.configs import base
from clipsep_jax.demo import demo as run
from clipsep_jax.demo import own_videos
from clipsep_jax.evaluation import calibration
from tests.data_prep import made_media as media

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small_demo(monkeypatch):
    """The same stages on a small network, few mixtures and an untrained CLIP."""
    toy = base._toy

    def smaller(config):
        config = toy(config)
        config.toy.num_clips, config.toy.encoder_steps = 40, 0
        config.spectrogram.num_samples = 8_191
        config.model.num_levels, config.model.width = 3, 4
        config.data.batch_size = 8
        return config

    monkeypatch.setattr(base, "_toy", smaller)
    monkeypatch.setattr(run, "NUM_MIXTURES", 6)
    monkeypatch.setattr(calibration, "NUM_MIXTURES", 8)
    monkeypatch.setattr(calibration, "NUM_REFERENCES", 4)
    monkeypatch.setattr(own_videos, "ENCODER_STEPS", 5)


def check_report(out: Path, *names: str) -> dict:
    report = json.loads((out / "report.json").read_text())
    assert {"mixture", "image", "ideal_binary_mask", "wrong_query", "seconds", *names} <= report.keys()
    assert all(np.isfinite(report[name]["sdr_mean"]) for name in ("mixture", "image", "ideal_binary_mask", *names))
    assert report["seconds"]["total"] >= report["seconds"]["train"] > 0
    assert 0 <= report["presence"]["auc"] <= 1
    assert report["presence"]["num_present"] == report["presence"]["num_absent"] > 0
    page = (out / "report.html").read_text()
    assert f"ROC AUC {report['presence']['auc']:.3f}" in page
    for path in (*out.glob("figures/*.png"), *out.glob("audio/*.wav")):
        assert path.relative_to(out).as_posix() in page
    assert len(list(out.glob("audio/*.wav"))) >= 4
    return report


@pytest.mark.slow
def test_toy_demo_writes_its_report_and_the_notebook_shows_it(small_demo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("demo")
    assert main(["demo", "--out", str(out), "--steps", "6"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"The report is in {out / 'report.html'}.")
    check_report(out, "text")
    sounds = {name: soundfile.read(out / "audio" / f"0_{name}.wav")[0] for name in ("mixture", "estimate")}
    assert len(sounds["mixture"]) == len(sounds["estimate"]) == 8_191
    names = run_notebook()  # which finds the demo done
    assert names["separation"].stems.shape == (1, 8_191)
    assert any(row.startswith("| text |") for row in names["rows"])


def run_notebook() -> dict:
    """Runs the cells as they are written, but for the installation and the steps; gives their names."""
    notebook = json.loads((ROOT / "notebooks" / "demo.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    install, *others = ["".join(cell["source"]) for cell in cells]
    assert install == "%pip install --quiet clipsep-jax"
    names: dict = {}
    for cell in others:
        exec(compile(cell.replace("STEPS = None", "STEPS = 6"), "notebook", "exec"), names)
    return names


def make_videos(folder: Path) -> Path:
    """Sixteen videos of four sounds, and their labels."""
    folder.mkdir()
    rows = ["video,label,split"]
    for number in range(16):
        path = folder / f"clip{number:02d}.mp4"
        hz = 220.0 * 2 ** (number % 4)
        sound = media.tone(3.0, hz=hz, gains=(0.4,)) * np.linspace(0.5 + 0.05 * number, 1.0, 3 * 44_100)
        media.make_video(path, sound.astype(np.float32), media.grey_pictures(30) + np.uint8(number))
        rows.append(f"{path.name},tone {number % 4},{'test' if number >= 12 else 'train'}")
    labels = folder.parent / "labels.csv"
    labels.write_text("\n".join(rows))
    return labels


@pytest.mark.soak
def test_demo_learns_from_own_videos(small_demo, tmp_path):
    labels = make_videos(tmp_path / "videos")
    out = tmp_path / "demo"
    arguments = ["--videos", str(tmp_path / "videos"), "--labels", str(labels), "--steps", "200"]
    assert main(["demo", "--out", str(out), *arguments]) == 0
    report = check_report(out, "text")
    assert report["loss"]["last_tenth"] < 0.8 * report["loss"]["first_tenth"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "labels.csv"], "give them with --videos"),
        (["--videos", "folder"], "--labels CSV"),
        (["--videos", "folder", "--labels", "x.csv", "--steps", "3"], "too few"),
        (["--videos", "no-such-folder", "--labels", "x.csv"], "no-such-folder"),
    ],
)
def test_bad_demo_options_are_refused(tmp_path, capsys, arguments, message):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.soak
def test_whole_demo_separates_by_text(tmp_path):
    """The demo's promise: text queries that were never trained with gain 5 dB, and the right query matters."""
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    report = check_report(out, "text")
    assert report["text"]["num"] >= 64
    assert report["text"]["sdr_mean"] >= report["mixture"]["sdr_mean"] + 5
    assert report["image"]["sdr_mean"] >= report["mixture"]["sdr_mean"] + 5
    assert report["text"]["sdr_mean"] >= report["wrong_query"]["sdr_mean"] + 5
