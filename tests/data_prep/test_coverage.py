import csv
from pathlib import Path

import numpy as np
from PIL import Image

from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.coverage import coverage, coverage_table, plot_loudness, summary, write_coverage
from clipsep_jax.data_prep.ledger import LedgerLine, Rejection, ledger_line
from clipsep_jax.data_prep.sources.inputs import Input


def line(outcome: Record | Rejection, label: str = "dog", split: str = "test") -> LedgerLine:
    return ledger_line(Input("a.mp4", Path("a.mp4"), label, split), outcome)


def record(minutes: int = 30, level: int = 1000, still: bool = False) -> Record:
    return Record("a.mp4", "dog", np.full(16_000 * 60 * minutes, level, np.int16), (b"",), still_picture=still)


def test_the_summary_counts_splits_and_reasons():
    lines = [line(record()), line(record(60, still=True), split="train"), line(record())]
    lines += [line(Rejection(reason, "")) for reason in ("silent", "too_short", "silent")]
    assert [row.split() for row in summary(lines).splitlines()] == [
        ["inputs", "6"],
        ["accepted", "3", "2.00", "hours", "of", "audio"],
        ["train", "1", "1.00", "hours", "of", "audio"],
        ["test", "2", "1.00", "hours", "of", "audio"],
        ["still", "picture", "1", "accepted,", "but", "nothing", "moves"],
        ["rejected", "3"],
        ["silent", "2"],
        ["too_short", "1"],
    ]


def test_the_coverage_of_every_label_and_split(tmp_path):
    lines = [line(record(), split="train"), line(record()), line(Rejection("silent", "")), line(record(60), "")]
    lines += [line(Rejection("missing", ""), "a, b")]
    rows = coverage(lines)
    assert [row.split() for row in coverage_table(rows).splitlines()] == [
        ["label", "train", "validation", "test", "rejected", "hours"],
        ["dog", "1", "0", "1", "1", "1.00"],
        ["(no", "label)", "0", "0", "1", "0", "1.00"],
        ["a,", "b", "0", "0", "0", "1", "0.00"],
    ]
    write_coverage(tmp_path / "coverage.csv", rows)
    with (tmp_path / "coverage.csv").open(newline="") as file:
        read = list(csv.reader(file))
    assert read[0] == ["label", "train", "validation", "test", "rejected", "hours"]
    assert read[1:] == [
        ["dog", "1", "0", "1", "1", "1.0"],
        ["", "0", "0", "1", "0", "1.0"],
        ["a, b", "0", "0", "0", "1", "0.0"],
    ]


def test_of_many_labels_the_most_and_the_least_frequent_are_shown():
    lines = [line(Rejection("missing", ""), f"label{n:03d}") for n in range(100)]
    shown = coverage_table(coverage(lines)).splitlines()
    assert len(shown) == 1 + 15 + 1 + 15
    assert shown[16] == "... 70 more labels ..."
    assert shown[-1].startswith("label099")


def test_the_plot_has_a_bar_at_the_level(tmp_path):
    paths = [tmp_path / name for name in ("loud.png", "soft.png", "none.png")]
    for path, level in zip(paths, (16_000, 100, None), strict=True):
        plot_loudness(path, [line(record(1, level)) if level else line(Rejection("silent", ""))])
    loud, soft, none = (np.asarray(Image.open(path).convert("RGB"), int) for path in paths)
    blue = [(picture[..., 2] - picture[..., 0] > 40).any(axis=0).nonzero()[0] for picture in (loud, soft)]
    assert blue[0].max() > blue[1].max() + 100  # louder is further to the right
    assert none.shape == loud.shape
