"""Paired comparisons."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.compare import (
    Scored,
    bootstrap_interval,
    common_mixtures,
    compare,
    mixtures_needed,
    read_scored,
)
from clipsep_jax.evaluation.compare_report import FORMATS, text_of, write_comparison


def scored(name, values, labels=None, offset=0):
    keys = [(f"clip{i + offset}", "other") for i in range(len(values))]
    labels = labels or ["label"] * len(values)
    return Scored(name, dict(zip(keys, map(float, values), strict=True)), dict(zip(keys, labels, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "clusters"), [(46, 0), (100, 0), (100, 25)])
def test_the_interval_covers_the_truth_as_often_as_it_says(number, clusters):
    """93 to 97% of 1,000 times, for lopsided differences, and for labels whose mixtures share theirs."""
    rng = np.random.default_rng(0)
    hits = 0
    for turn in range(1000):
        labels = None
        differences = 0.3 + rng.gamma(4, 0.7, number) - 2.8
        if clusters:
            of_label = rng.integers(0, clusters, number)
            differences += rng.normal(0, 1, clusters)[of_label]
            labels = [str(label) for label in of_label]
        low, high = bootstrap_interval(differences, labels, resamples=2000, seed=turn)
        hits += low <= 0.3 <= high
    assert 930 <= hits <= 970


def test_the_interval_is_reproducible_and_near_that_of_student():
    differences = np.random.default_rng(0).normal(0.5, 1, 80)
    assert bootstrap_interval(differences) == bootstrap_interval(differences)
    assert bootstrap_interval(differences) != bootstrap_interval(differences, seed=1)
    low, high = scipy.stats.t.interval(0.95, 79, differences.mean(), differences.std(ddof=1) / np.sqrt(80))
    assert bootstrap_interval(differences) == pytest.approx((low, high), abs=0.03)


def test_labels_that_share_their_differences_widen_the_interval():
    labels = [str(i // 10) for i in range(100)]
    differences = np.repeat(np.random.default_rng(0).normal(0.3, 1, 10), 10)
    alone, together = bootstrap_interval(differences), bootstrap_interval(differences, labels)
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])
    assert bootstrap_interval(differences, ["one"] * 100) == (-math.inf, math.inf)


def test_a_handful_of_mixtures_proves_nothing():
    assert bootstrap_interval(np.array([0.5, 0.3])) == (-math.inf, math.inf)
    (difference,) = compare([scored("a", [1, 2]), scored("b", [0.5, 1.7])])
    assert not difference.is_real
    assert json.loads(text_of("json", [scored("a", [1, 2]), scored("b", [0.5, 1.7])], [difference], "sdr"))
    assert bootstrap_interval(np.full(9, 0.4)) == pytest.approx((0.4, 0.4))
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.normal(0.3, 1, 8), resamples=1000, seed=turn) for turn in range(300)]
    assert np.mean([low <= 0.3 <= high for low, high in intervals]) > 0.9
    assert np.median([high - low for low, high in intervals]) < 4


def test_systems_that_differ_are_told_apart_where_their_means_overlap():
    """A better system by 0.3 dB on mixtures that spread over 8 dB."""
    rng = np.random.default_rng(0)
    base = rng.normal(5, 8, 100)
    first, second = scored("first", base + 0.3 + rng.normal(0, 0.5, 100)), scored("second", base)
    (difference,) = compare([first, second])
    assert difference.is_real
    assert difference.low < 0.3 < difference.high
    assert difference.sign_p < 0.001
    assert difference.sentence.startswith("first is better than second: 0.")
    (reverse,) = compare([second, first])
    assert reverse.sentence.startswith("first is better than second: 0.")
    assert reverse.mean == pytest.approx(-difference.mean)


def test_equal_systems_are_not_told_apart():
    rng = np.random.default_rng(0)
    base = rng.normal(5, 8, 100)
    (difference,) = compare([scored("a", base + rng.normal(0, 1, 100)), scored("b", base)])
    assert not difference.is_real
    assert "a and b cannot be told apart" in difference.sentence
    (same,) = compare([scored("a", base), scored("b", base)])
    assert (same.mean, same.sign_p, same.wins, same.losses) == (0, 1, 0, 0)
    assert "cannot be told apart" in same.sentence


def test_the_sign_test_is_the_binomial_one():
    values = np.where(np.arange(30) < 21, 1.0, -1.0)
    (difference,) = compare([scored("a", values), scored("b", 0 * values)])
    assert (difference.wins, difference.losses) == (21, 9)
    assert difference.sign_p == pytest.approx(2 * scipy.stats.binom.cdf(9, 30, 0.5))


def test_the_number_of_mixtures_finds_the_difference_four_times_in_five():
    rng = np.random.default_rng(0)
    number = mixtures_needed(rng.normal(0, 1.2, 100_000))
    found = sum(scipy.stats.ttest_1samp(rng.normal(0.3, 1.2, number), 0).pvalue < 0.05 for _ in range(1000))
    assert 0.77 < found / 1000 < 0.83


def test_three_systems_are_compared_on_what_all_have():
    a, b = scored("a", np.arange(10.0)), scored("b", np.arange(8.0), offset=2)
    c = scored("c", np.arange(10.0))
    assert len(common_mixtures([a, b, c])) == 8
    differences = compare([a, b, c])
    assert [(each.first, each.second, each.num) for each in differences] == [
        ("a", "b", 8),
        ("a", "c", 8),
        ("b", "c", 8),
    ]
    assert "a was scored on 10 mixtures, of which 8 are common to all." in text_of(
        "text", [a, b, c], differences, "sdr"
    )
    with pytest.raises(InputError, match="No mixture is scored in a and b alike"):
        compare([a, scored("b", np.arange(8.0), offset=20)])


def write_rows(folder, rows):
    folder.mkdir(parents=True)
    (folder / "mixtures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


ROW = {
    "target": "a",
    "interferer": "b",
    "target_label": "dog",
    "ways": ["mixture", "ideal_binary_mask", "text", "image"],
}


def test_scores_are_read_by_way_and_metric(tmp_path):
    rows = [
        ROW | {"mixture": 0.0, "text": 1.5, "image": 2.5, "sir_text": 9.0},
        ROW | {"target": "c", "mixture": 0.0, "text": None, "image": 1.0, "sir_text": None},
    ]
    folder = write_rows(tmp_path / "run" / "scores", rows)
    assert read_scored(folder, None).name == "run:text"
    assert read_scored(folder, None).scores == {("a", "b"): 1.5}
    assert read_scored(folder / "mixtures.jsonl", "image").scores == {("a", "b"): 2.5, ("c", "b"): 1.0}
    assert read_scored(folder, "text", "sir").scores == {("a", "b"): 9.0}
    with pytest.raises(InputError, match="no scores by 'sound'; it has mixture, ideal_binary_mask, text, image"):
        read_scored(folder, "sound")
    with pytest.raises(InputError, match="no SAR of text; evaluate with --metrics sar"):
        read_scored(folder, "text", "sar")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "has no scores of mixtures"),
        ([{"some": "thing"}], "has no scores of mixtures"),
        ([ROW | {"text": "much"}], "score that is no finite number"),
        ([ROW | {"text": 1.0, "target": None}], "without the ids of its clips"),
        ([{"target": "a", "interferers": 7, "ways": ["text"], "text": 1.0}], "without the ids of its clips"),
        ([ROW | {"ways": 5}], "has no scores of mixtures"),
        ([ROW | {"text": 10**400}], "score that is no finite number"),
        (["text"], "is not a file of scores"),
    ],
)
def test_other_files_are_refused(tmp_path, rows, words):
    folder = write_rows(tmp_path / "scores", rows)
    with pytest.raises(InputError, match=words):
        read_scored(folder, None)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"There is no .*; give what `clipsep evaluate --out` wrote"):
        read_scored(tmp_path / "none", None)


def test_every_format_tells_the_same(tmp_path):
    rng = np.random.default_rng(0)
    base, labels = rng.normal(5, 8, 40), [f"label $ {i % 4} $" for i in range(40)]
    systems = [scored("run_a:text", base + 1, labels), scored("b, the other", base, labels)]
    differences = compare(systems)
    texts = {kind: text_of(kind, systems, differences, "sdr") for kind in FORMATS}
    mean = f"{base.mean() + 1:.2f}"
    assert all(mean in texts[kind] for kind in FORMATS if kind != "json")
    assert texts["text"].splitlines()[0].split() == ["system", "SDR", "mean", "(dB)", "s.e.", "median", "mixtures"]
    assert differences[0].sentence in texts["text"]
    assert f"- {differences[0].sentence}" in texts["markdown"]
    assert r"run\_a:text & $" in texts["latex"]
    assert texts["csv"].splitlines()[2].startswith('"b, the other",')
    assert texts["csv"].splitlines()[4].startswith("first,second,num,mean,low,high,")
    assert f"% {differences[0].sentence}" in texts["latex"]
    assert json.loads(texts["json"])["systems"][0]["sdr_mean"] == pytest.approx(base.mean() + 1)
    assert json.loads(texts["json"])["differences"][0]["is_real"] is True
    folder = write_comparison(tmp_path / "out", systems, differences, "sdr")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "compare.txt", "compare.md", "compare.tex", "compare.csv", "differences.csv", "compare.json",
        "differences.png", "differences_by_label.png",
    }  # fmt: skip
