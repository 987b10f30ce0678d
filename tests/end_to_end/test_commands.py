"""The commands in processes of their own, from made-up clips to a separated file."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.children import children_of, ended

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def start(folder: Path, *arguments: str, new_session: bool = False) -> subprocess.Popen:
    command = [sys.executable, "-m", "clipsep_jax.cli", *arguments]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=new_session)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "clipsep_jax.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def train_arguments(*more: str) -> list[str]:
    return ["train", f"--config={ROOT / 'configs' / 'toy_smoke.py'}", "--workdir=runs/smoke", *more]


def metrics(folder: Path) -> list[dict]:
    path = folder / "runs" / "smoke" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder in which the smallest run has finished."""
    folder = tmp_path_factory.mktemp("user")
    result = run(folder, *train_arguments())
    assert result.returncode == 0, result.stderr
    assert "The best model is in runs/smoke/best" in result.stdout
    assert "step 20/20 loss " in result.stderr  # a line a log interval, as this is no screen
    assert "time: steps " in result.stderr
    assert "\r" not in result.stderr.partition("step 1/20")[2]
    return folder


def test_smoke_training_makes_its_own_records(folder):
    assert (folder / "runs" / "toy_smoke_records" / "manifest.json").is_file()
    assert [line["step"] for line in metrics(folder)] == list(range(1, 21))
    assert all(np.isfinite(line["loss"]) for line in metrics(folder))


def test_trained_model_separates_a_file(folder):
    soundfile.write(folder / "mix.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 40_000), 16_000)
    result = run(
        folder, "separate", "mix.wav", "--model", "runs/smoke", "--query", "flute", "--residual", "--out", "out"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["out/mix_flute.wav", "out/mix_residual.wav"]
    assert all(len(soundfile.read(path)[0]) == 40_000 for path in (folder / "out").iterdir())


@pytest.mark.soak
def test_evaluate_scores_the_run(folder):
    arguments = ["--records", "runs/toy_smoke_records", "--num-mixtures", "3"]
    result = run(folder, "evaluate", "--model", "runs/smoke", *arguments)
    assert result.returncode == 0, result.stderr
    assert "2 mixtures (3 asked for, but these clips make no more different ones)" in result.stdout


def test_interrupted_training_goes_on(folder):
    """Ctrl-C leaves a checkpoint; the same command goes on from it."""
    long = train_arguments("--config.train.steps=100000", "--config.train.validate_every=100000")
    changed = ("train.steps", "train.validate_every", "checkpoint.save_every")
    allowed = [f"--allow-change={name}" for name in changed]
    process = start(folder, *long, "--config.checkpoint.save_every=100000", *allowed)
    deadline = time.monotonic() + 120
    while len(metrics(folder)) < 25:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes from there" in errors
    stopped = metrics(folder)[-1]["step"]
    result = run(folder, *train_arguments(f"--config.train.steps={stopped + 2}", *allowed))
    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in metrics(folder)] == list(range(1, stopped + 3))


@pytest.fixture
def training(folder) -> Iterator[Callable[..., tuple[subprocess.Popen, set[int]]]]:
    """Starts a run that would take hours, and gives its process and those that read for it once it has taken steps."""
    processes = []

    def start_training(name: str, num_workers: int, *options: str) -> tuple[subprocess.Popen, set[int]]:
        workdir = folder / "runs" / name
        long = ["--config.train.steps=1000000", "--config.train.validate_every=1000000"]
        arguments = ["train", f"--config={ROOT / 'configs' / 'toy_smoke.py'}", f"--workdir={workdir}", *long]
        process = start(folder, *arguments, f"--config.data.read_workers={num_workers}", *options, new_session=True)
        processes.append(process)
        deadline = time.monotonic() + 120
        while not (workdir / "metrics.jsonl").is_file() or not (workdir / "metrics.jsonl").read_text():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers = children_of(process.pid)
        assert len(workers) == num_workers
        return process, workers

    yield start_training
    for process in processes:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("number", "to_all", "code"),
    [
        pytest.param(signal.SIGINT, True, 130, marks=pytest.mark.soak),  # as a terminal does
        pytest.param(signal.SIGTERM, True, 75, marks=pytest.mark.soak),  # as a scheduler does
        (signal.SIGKILL, False, -signal.SIGKILL),
    ],
)
def test_no_process_that_reads_outlives_training(training, number, to_all, code):
    shared = set(os.listdir("/dev/shm"))
    process, workers = training(number.name, 2)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert ended(workers, seconds=10)
    assert set(os.listdir("/dev/shm")) == shared


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_read_that_hangs_ends_training_without_orphans(training):
    """A stopped worker, as on a disk that does not answer."""
    process, workers = training("hanging", 1, "--config.train.hang_seconds=8")
    (worker,) = workers
    os.kill(worker, signal.SIGSTOP)
    try:
        assert process.wait(timeout=90) == 1
    finally:
        os.kill(worker, signal.SIGCONT)
    assert "Timeout" in process.communicate()[1]
    assert ended(workers, seconds=10)
