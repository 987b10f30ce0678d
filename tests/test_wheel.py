"""The built wheel works without a checkout."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]

SMALLEST_DEMO = """
import sys
from clipsep_jax.cli.main import main
from clipsep_jax.configs import base
from clipsep_jax.demo import demo

toy = base._toy

def smaller(config):
    config = toy(config)
    config.toy.num_clips, config.toy.encoder_steps = 20, 0
    config.model.num_levels, config.model.width, config.spectrogram.num_samples = 3, 4, 8191
    config.train.validate_every, config.train.log_every = 2, 1
    return config

base._toy, demo.NUM_MIXTURES = smaller, 6
sys.exit(main(["demo", "--steps", "2"]))
"""


def build_wheel(folder: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = tracked.stdout.splitlines() or [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py")]
    source = folder / "source"
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def wheel(made_once) -> Path:
    (built,) = made_once("wheel", build_wheel).glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of an environment that holds the wheel, and sees this environment's libraries but not the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    site = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def run(python: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run([python, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_but_the_package_lies_at_the_top(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"clipsep_jax"}
    needed = ("configs/clipsep_nit.py", "data_prep/writer.py", "py.typed", "evaluation/pairs/music-plus.csv")
    assert {f"clipsep_jax/{name}" for name in needed} <= set(names)


def test_it_prepares_and_trains_in_an_empty_folder(installed, tmp_path):
    (tmp_path / "sounds").mkdir()
    for number in range(3):
        noise = 0.1 * np.random.default_rng(number).normal(size=32_000)
        soundfile.write(tmp_path / "sounds" / f"{number}.wav", noise, 16_000)
    code = "import clipsep_jax; print(clipsep_jax.__file__)"
    assert run(installed, tmp_path, "-c", code).startswith(str(installed.parents[1]))
    prepare = ["prepare", "audio", "sounds", "--out", "records", "--workers", "1"]
    assert "3 records are in records." in run(installed, tmp_path, "-m", "clipsep_jax.cli", *prepare)
    sizes = ["--config.model.num_levels=1", "--config.model.width=2", "--config.spectrogram.num_samples=2047"]
    sizes += ["--config.data.batch_size=2", "--config.train.steps=2", "--config.train.validate_every=2"]
    train = ["train", "--config=pit:music", "--config.data.records=records", "--workdir=smoke", *sizes]
    assert "The best model is in smoke/best" in run(installed, tmp_path, "-m", "clipsep_jax.cli", *train)
    unfinished = [installed, "-m", "clipsep_jax.cli", "train", "--config=clipsep_nit:vggsound", "--workdir=nit"]
    told = subprocess.run(unfinished, cwd=tmp_path, capture_output=True, text=True)
    assert (told.returncode, "data/vggsound holds no complete records" in told.stderr) == (2, True), told.stderr


@pytest.mark.soak
def test_it_runs_the_demo_in_an_empty_folder(installed, tmp_path):
    assert "The report is in runs/demo/report.html." in run(installed, tmp_path, "-c", SMALLEST_DEMO)
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
