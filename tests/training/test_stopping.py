"""Requests to stop, and steps that hang."""

import os
import signal
import subprocess
import sys

import pytest

from clipsep_jax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED
from clipsep_jax.training.stopping import Interrupted, stop_on_signal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, EXIT_INTERRUPTED), (signal.SIGTERM, EXIT_PREEMPTED)])
def test_the_first_signal_is_a_request_with_an_exit_code(number, code):
    before = signal.getsignal(number)
    with stop_on_signal() as stop:
        assert not stop.stops_at(1)
        os.kill(os.getpid(), number)
        assert stop.stops_at(2)
        assert stop.exit_code == code
        assert signal.getsignal(number) == before  # a second one acts as usual
    assert Interrupted(2, code).exit_code == code


def run(code: str) -> subprocess.CompletedProcess:
    code = f"import time; from clipsep_jax.training.stopping import Watchdog\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_a_step_that_hangs_is_told_and_ends_the_process():
    hung = run("def hang():\n    time.sleep(30)\nwith Watchdog(1):\n    hang()\nprint('over')")
    assert hung.returncode == 1
    assert "in hang" in hung.stderr
    assert hung.stdout == ""


@pytest.mark.slow
def test_steps_that_come_in_time_are_left_alone():
    fine = run("with Watchdog(1) as dog:\n    for _ in range(5):\n        time.sleep(0.4)\n        dog.step()\n"
               "time.sleep(1.5)\nprint('over')")  # fmt: skip
    assert (fine.returncode, fine.stdout) == (0, "over\n")
