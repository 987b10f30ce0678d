"""The benchmarks, each at its least size, as the commands that they are."""

import json
import subprocess
import sys
from typing import Any

import pytest


def run(name: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


@pytest.mark.slow
def test_rematerialisation_trades_work_for_memory():
    """By XLA's own analysis of the compiled step."""
    size = ("--width", "16", "--batch", "2", "--steps", "1")
    plain, rematerialised = run("train_step", *size), run("train_step", *size, "--remat")
    assert rematerialised["peak_bytes"] < 0.9 * plain["peak_bytes"]
    assert rematerialised["gflop_per_example"] > 1.1 * plain["gflop_per_example"]


@pytest.mark.slow
def test_a_full_size_step_costs_at_most_27_gflop_an_example():
    assert run("train_step", "--batch", "2", "--steps", "1")["gflop_per_example"] <= 27
