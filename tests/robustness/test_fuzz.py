"""The fuzzer runs for moments here and for minutes in `make soak`; it can fail."""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.robustness import fuzz
from tests.robustness.mutations import mutate_bytes

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
def test_moments_of_changed_files_bring_no_fault():
    options = ["--seconds=12", "--seed=1", "--workers=1", "--patience=120"]  # other tests keep the cores busy
    command = [sys.executable, "-m", "tests.robustness.fuzz", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) changes by seed 1; 0 faults", done.stdout).group(1)) > 3


def test_equal_seeds_make_equal_changes():
    changes = [mutate_bytes(bytes(range(256)), random.Random(seed)) for seed in (3, 3, 4)]
    assert changes[0] == changes[1] != changes[2]


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("open", ("/etc/passwd", "w", os.O_WRONLY)),
        ("open", (b"../outside", None, os.O_CREAT)),
        ("os.remove", ("/outside", -1)),
        ("os.rename", ("/allowed/a", "/outside/b", -1, -1)),
        ("subprocess.Popen", ("sh", ["sh"], None, None)),
        ("socket.connect", (None, ("127.0.0.1", 80))),
    ],
)
def test_what_is_done_outside_is_seen(event, arguments):
    watch = fuzz._Watch([Path("/allowed")])
    watch.see(event, arguments)
    assert not watch.seen
    watch.begin()
    watch.see(event, arguments)
    assert len(watch.seen) == 1
    watch.see("open", ("/allowed/x", "w", os.O_WRONLY))
    watch.see("open", ("/etc/passwd", "r", os.O_RDONLY))
    assert len(watch.seen) == 1


def test_faults_end_with_an_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz"])
    for faults in ([], ["Change 3: a traceback"]):
        monkeypatch.setattr(fuzz, "fuzz", lambda *_, faults=faults: (Counter({("media", "read"): 7}), faults))
        assert fuzz.main() == len(faults)
        told = capsys.readouterr().out
        assert "7 changes" in told
        assert "".join(faults) in told
