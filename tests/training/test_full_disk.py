"""A disk that fills during a run: reported within one save, the checkpoint before it is intact, and the run resumes."""

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.small import QUERY_SIZE, make_records

SAVE_EVERY = 10


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    return make_records(tmp_path_factory.mktemp("records"))


@pytest.fixture
def start(records, request) -> Callable[..., subprocess.Popen]:
    """Starts a run, which is killed if the test leaves it running."""

    def start(workdir: Path, steps: int, *more: str) -> subprocess.Popen:
        process = subprocess.Popen(arguments(records, workdir, steps, *more), stderr=subprocess.PIPE, text=True)
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        return process

    return start


def arguments(records: Path, workdir: Path, steps: int, *more: str) -> list[str]:
    options = {
        "toy.num_clips": 0,
        "data.records": records,
        "data.validation_split": "none",
        "model.query_size": QUERY_SIZE,
        "model.width": 8,
        "train.steps": steps,
        "train.log_every": SAVE_EVERY,
        "checkpoint.save_every": SAVE_EVERY,
    }
    command = [sys.executable, "-m", "clipsep_jax.cli", "train", "--config=configs/toy_smoke.py", *more]
    return [*command, f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in options.items())]


def whole_steps(workdir: Path) -> list[int]:
    """Checkpoints that are finished and have their checksums."""
    return sorted(int(path.parent.name) for path in workdir.glob("checkpoints/*/sha256.json"))


def wait_for_checkpoints(process: subprocess.Popen, workdir: Path, number: int) -> None:
    end = time.monotonic() + 120
    while len(whole_steps(workdir)) < number:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def check_the_end(
    process: subprocess.Popen, start: Callable[..., subprocess.Popen], workdir: Path, message: str
) -> None:
    """One sentence and exit code 1, at most two saves after the last whole checkpoint, from which a rerun goes on."""
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    told = [line for line in errors.splitlines() if line.startswith("clipsep: ")]
    assert told == errors.splitlines()[-1:], errors
    assert re.fullmatch(rf"clipsep: {workdir}/\S+: {message}", told[0])
    reached = max(int(number) for number in re.findall(r"^step (\d+)/", errors, re.MULTILINE))
    last = whole_steps(workdir)[-1]
    assert last < reached <= last + 2 * SAVE_EVERY
    (workdir / "filling").unlink(missing_ok=True)
    again = start(workdir, last + SAVE_EVERY, "--allow-change=train.steps")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert f"step {last + SAVE_EVERY}/" in errors
    assert f"step {last}/" not in errors


@pytest.mark.slow
def test_a_file_that_cannot_grow_ends_the_run_within_one_save(start, tmp_path):
    process = start(tmp_path, 1_000_000)
    wait_for_checkpoints(process, tmp_path, 2)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    check_the_end(process, start, tmp_path, r"File too large\.")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    if os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip("mounting a disk of 20 MB takes root on Linux; the test above limits a file instead")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path, left: int) -> None:
    """Leave so many bytes of the disk, while a run writes to it too."""
    with path.open("wb") as file:
        while True:
            status = os.statvfs(path.parent)
            free = status.f_bavail * status.f_frsize
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(1, free - left))
                return


@pytest.mark.soak
@pytest.mark.parametrize("left", [0, 0.1, 0.7])
def test_a_disk_with_room_for_a_part_of_a_checkpoint_ends_the_run_within_one_save(small_disk, start, left):
    process = start(small_disk / "run", 1_000_000)
    wait_for_checkpoints(process, small_disk / "run", 2)
    checkpoint = small_disk / "run" / "checkpoints" / str(whole_steps(small_disk / "run")[0])
    size = sum(path.stat().st_size for path in checkpoint.rglob("*"))
    fill(small_disk / "run" / "filling", int(left * size))
    message = r"No space left on device; make room and run the same command again\."
    check_the_end(process, start, small_disk / "run", message)
