"""Ends a preparation at any moment: between two operations on files, or by SIGKILL."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from tests.data_prep.fakes import make_inputs, read_fake


class Killed(BaseException):
    pass


def finishes_before(number: int, monkeypatch, work: Callable[[], object]) -> bool:
    """Do the work, but let nothing happen to the files from operation `number` on, as when the process is gone."""
    count = 0

    def mortal(operate):
        def run(*args, **kwargs):
            nonlocal count
            count += 1
            if count > number:
                raise Killed
            return operate(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir", "mkdir", "fsync"):
            patch.setattr(os, name, mortal(getattr(os, name)))
        try:
            work()
        except Killed:
            return False
    return True


def read_slowly(source: Input):
    time.sleep(0.02)
    return read_fake(source)


def prepare_slowly(out: Path) -> None:
    write_records(make_inputs(60), read_slowly, out, run=PoolRunner(2), block_size=4, max_rejected=0.5)


def start(out: Path) -> subprocess.Popen:
    """Start a process that prepares into `out` once it has imported everything."""
    code = "from tests.data_prep import killing; import pathlib; print('ready', flush=True); "
    process = subprocess.Popen(
        [sys.executable, "-c", code + f"killing.prepare_slowly(pathlib.Path({str(out)!r}))"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def kill_at_random(out: Path, rng: random.Random, seconds: float) -> bool:
    """Start, and kill the process alone at a random moment; return whether that was before its end.

    Its children hold its output, so this returns only when they are gone too.
    """
    process = start(out)
    try:
        process.communicate(timeout=rng.uniform(0, seconds))
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate(timeout=30)
        return True


def run_to_the_end(out: Path) -> float:
    """Start and wait; return the seconds that it took."""
    process, begin = start(out), time.monotonic()
    process.communicate(timeout=120)
    assert process.returncode == 0
    return time.monotonic() - begin
