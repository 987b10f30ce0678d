import json
from pathlib import Path

import numpy as np
import pytest

from clipsep_jax.records import Record
from data_prep.ledger import Input, Rejection, ledger_line, peak_dbfs, read_ledger, summary, write_ledger

SOURCE = Input("a/b.mp4", Path("x/a/b.mp4"), "dog", "test")


def test_peak_level():
    assert peak_dbfs(np.array([0, -32768], np.int16)) == 0.0
    assert peak_dbfs(np.array([16384, 3], np.int16)) == pytest.approx(-6.0206, abs=1e-4)
    assert peak_dbfs(np.zeros(5, np.int16)) == -np.inf


def test_ledger_round_trip_and_fields(tmp_path):
    record = Record("a/b.mp4", "dog", np.full(24_000, 16384, np.int16), (b"", b""))
    lines = [ledger_line(SOURCE, record), ledger_line(SOURCE, Rejection("silent", "no sound"))]
    write_ledger(tmp_path / "ledger.jsonl", lines)
    assert read_ledger(tmp_path / "ledger.jsonl") == lines
    first, second = (json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines())
    common = {"input": "a/b.mp4", "label": "dog", "split": "test"}
    figures = {"duration_seconds": 1.5, "num_frames": 2, "peak_dbfs": -6.02}
    assert first == common | {"status": "accepted", "reason": "", "detail": ""} | figures
    assert second == common | {"status": "rejected", "reason": "silent", "detail": "no sound"} | dict.fromkeys(figures)


def test_summary_counts_splits_and_reasons():
    record = Record("a/b.mp4", "dog", np.full(16_000 * 60, 1000, np.int16), (b"",))
    outcomes = [record, record, Rejection("silent", ""), Rejection("too_short", ""), Rejection("silent", "")]
    text = summary([ledger_line(SOURCE, outcome) for outcome in outcomes])
    words = [line.split() for line in text.splitlines()]
    assert words == [
        ["inputs", "5"],
        ["accepted", "2", "2.0", "minutes", "of", "audio"],
        ["test", "2"],
        ["rejected", "3"],
        ["silent", "2"],
        ["too_short", "1"],
    ]
