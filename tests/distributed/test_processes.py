"""Runs in processes of their own: killed and continued, and two with `jax.distributed` that run as one."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

from clipsep_jax.errors import InputWarning
from clipsep_jax.training.checkpoints import Checkpoints
from clipsep_jax.training.curves import read_metrics
from clipsep_jax.training.step import Trainer
from tests.distributed.one_of_two import training_config
from tests.small import make_records


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    return make_records(tmp_path_factory.mktemp("records"))


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(
    records: Path, workdir: Path, steps: int, num_processes: int, num_members: int = 1, save_every: int = 10
) -> list[subprocess.Popen]:
    """Processes with a device for each member."""
    port = free_port()
    flags = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_members or 1}",
    }
    command = [sys.executable, "-m", "tests.distributed.one_of_two", str(records), str(workdir), str(steps)]
    command += [str(save_every), str(num_members)]
    return [
        subprocess.Popen(
            [*command, *((port, str(number)) if num_processes > 1 else ())],
            env=flags,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(num_processes)
    ]


def finish(processes: list[subprocess.Popen], seconds: float = 150) -> list[tuple[int, str]]:
    """Exit code and output of each."""
    ends = []
    for process in processes:
        output, errors = process.communicate(timeout=seconds)
        ends.append((process.returncode, output + errors[-3000:]))
    return ends


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line == f"step {step}\n":
            return
    raise AssertionError(process.stderr.read()[-3000:])


@pytest.fixture(scope="module")
def whole(records, made_once) -> Path:
    """A run of sixty steps, in one go and one process."""
    return made_once("whole", lambda workdir: run_to_the_end(records, workdir, 60))


@pytest.mark.slow
def test_two_processes_train_as_one_and_sigterm_to_one_stops_both_at_the_same_step(records, tmp_path, whole):
    both = start(records, tmp_path / "two", 100_000, 2)
    wait_for_step(both[0], 3)
    both[1].send_signal(signal.SIGTERM)
    ends = finish(both)
    assert [code for code, _ in ends] == [75, 75], ends
    stops = {line for _, output in ends for line in output.splitlines() if line.startswith("stopped ")}
    assert len(stops) == 1, ends
    one, two = read_metrics(whole), read_metrics(tmp_path / "two")
    np.testing.assert_allclose(two[0]["loss"], one[0]["loss"], rtol=1e-5)
    assert (tmp_path / "two" / "checkpoints" / stops.pop().removeprefix("stopped ")).is_dir()


@pytest.mark.soak
def test_two_processes_take_the_step_of_one(tmp_path, monkeypatch):
    """Loss, every gradient and every statistic; in float64, for the reason given at `compare_steps`."""
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    found = []
    for num_processes in (1, 2):
        folder = tmp_path / str(num_processes)
        for code, output in finish(start(tmp_path, folder, 0, num_processes)):
            assert code == 0, output
        with np.load(folder / "step.npz") as step:
            found.append([step[name] for name in step.files])
    assert len(found[0]) > 10
    assert found[0][0].dtype == np.float64
    for one, two in zip(*found, strict=True):
        assert np.abs(two - one).max() <= 1e-5 * np.abs(one).max()


@pytest.mark.slow
def test_what_the_first_process_refuses_ends_the_other_too(records, tmp_path):
    (first, told), (second, other) = finish(start(records, tmp_path, 1, 2, 0), 60)
    assert (first, second) == (1, 1)
    assert "no such records" in told
    assert "The first process failed; see its message" in other


@pytest.mark.soak
def test_two_processes_train_members_together_as_one_does(records, tmp_path):
    """Two members on 2 x 2 devices, six saves of both: batches are split over processes, members over their devices."""
    for name, num_processes in (("one", 1), ("two", 2)):
        for code, output in finish(start(records, tmp_path / name, 12, num_processes, 2, save_every=2)):
            assert code == 0, output
    for member in ("0", "1"):
        one, two = (read_metrics(tmp_path / name / member) for name in ("one", "two"))
        assert [line["step"] for line in two] == list(range(1, 13))
        assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)
        assert (tmp_path / "two" / member / "best" / "model.safetensors").is_file()


@pytest.mark.soak
def test_when_one_is_killed_the_other_ends_and_the_rerun_goes_on(records, tmp_path):
    both = start(records, tmp_path, 200, 2)
    wait_for_step(both[0], 20)
    both[1].kill()
    begin = time.monotonic()
    (code, output), _ = finish(both)
    assert code != 0, output
    assert time.monotonic() - begin < 120
    for code, output in finish(start(records, tmp_path, 200, 2), 300):
        assert code == 0, output
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 201))


def final_state(workdir: Path, steps: int) -> list[np.ndarray]:
    config = training_config(Path("records"), steps)
    with Checkpoints(workdir / "checkpoints", config) as checkpoints:
        assert checkpoints.steps[-1] == steps
        return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoints.restore(steps, Trainer(config).init()))]


def assert_equal_runs(workdir: Path, whole: Path, steps: int) -> None:
    """Curves, model, parameters, statistics, optimizer and position, bit for bit."""
    assert read_metrics(workdir) == read_metrics(whole)
    for got, want in zip(final_state(workdir, steps), final_state(whole, steps), strict=True):
        np.testing.assert_array_equal(got, want)
    weights = [(folder / "best" / "model.safetensors").read_bytes() for folder in (workdir, whole)]
    assert weights[0] == weights[1]


def run_to_the_end(records: Path, workdir: Path, steps: int, save_every: int = 10) -> None:
    for code, output in finish(start(records, workdir, steps, 1, save_every=save_every)):
        assert code == 0, output


@pytest.mark.soak
def test_thirty_steps_a_kill_and_thirty_more_equal_sixty(records, tmp_path, whole):
    (process,) = start(records, tmp_path, 60, 1)
    wait_for_step(process, 30)
    process.kill()
    finish([process])
    run_to_the_end(records, tmp_path, 60)
    assert_equal_runs(tmp_path, whole, 60)


@pytest.mark.soak
def test_after_twenty_kills_while_it_saves_a_complete_step_is_restored(records, tmp_path):
    """A checkpoint every other step, so that most kills come while one is written; no other one is lost."""
    rng, steps, save_every = random.Random(0), 400, 2
    run_to_the_end(records, tmp_path / "whole", steps, save_every)
    num_kills = 0
    while num_kills < 20:
        before = last_step(tmp_path / "killed")
        (process,) = start(records, tmp_path / "killed", steps, 1, save_every=save_every)
        wait_for_step(process, before + rng.randint(2, 15))
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        output = finish([process])[0][1]
        num_kills += 1
        told = [int(number) for number in re.findall(r"^step (\d+)$", output, re.MULTILINE)]
        reached = max([before + 2, *told])
        begun = (reached - 1) // save_every * save_every  # a step is told before its own save begins
        assert complete_step(tmp_path / "killed") >= begun - save_every
    run_to_the_end(records, tmp_path / "killed", steps, save_every)
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole", steps)


def last_step(workdir: Path) -> int:
    return complete_step(workdir) if (workdir / "checkpoints").is_dir() else 0


def complete_step(workdir: Path) -> int:
    config = training_config(Path("records"), 400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # the checksums of the last one may not be there yet
        with Checkpoints(workdir / "checkpoints", config) as checkpoints:
            return max(checkpoints.steps, default=0)
