import json
from pathlib import Path

import numpy as np
import pytest

from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.ledger import Rejection, dbfs, ledger_line, read_ledger, write_ledger
from clipsep_jax.data_prep.sources.inputs import Input

SOURCE = Input("a/b.mp4", Path("x/a/b.mp4"), "dog", "test")


def test_level():
    assert dbfs(32768.0) == 0.0
    assert dbfs(16384.0) == pytest.approx(-6.0206, abs=1e-4)
    assert dbfs(0.0) == -np.inf


def test_ledger_round_trip_and_fields(tmp_path):
    record = Record("a/b.mp4", "dog", np.full(24_000, 16384, np.int16), (b"", b""))
    lines = [ledger_line(SOURCE, record), ledger_line(SOURCE, Rejection("silent", "no sound"))]
    write_ledger(tmp_path / "ledger.jsonl", lines)
    assert read_ledger(tmp_path / "ledger.jsonl") == lines
    first, second = (json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines())
    common = {"input": "a/b.mp4", "label": "dog", "split": "test"}
    figures = {"duration_seconds": 1.5, "num_frames": 2, "peak_dbfs": -6.02, "rms_dbfs": -6.02, "still_picture": False}
    assert first == common | {"status": "accepted", "reason": "", "detail": ""} | figures
    assert second == common | {"status": "rejected", "reason": "silent", "detail": "no sound"} | dict.fromkeys(figures)
