"""Held-out mixtures and their scores."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.protocols import draw_pairs
from clipsep_jax.evaluation.scores import Evaluation
from clipsep_jax.evaluation.tables import table, write_scores
from clipsep_jax.metrics import sdr, summarise
from clipsep_jax.separation.separator import Separator


@pytest.fixture(scope="module")
def evaluation(trained, clip_records) -> Evaluation:
    return Evaluation(Separator.load(trained), RecordSet(clip_records), "test", num_mixtures=10)


def test_sdr_is_the_plain_ratio():
    rng = np.random.default_rng(0)
    reference, error = rng.normal(size=(2, 5, 1000))
    expected = 10 * np.log10((reference**2).sum(-1) / (error**2).sum(-1))
    np.testing.assert_allclose(sdr(jnp.asarray(reference), jnp.asarray(reference + error)), expected, rtol=1e-4)


def test_summary_has_mean_median_and_standard_error():
    summary = summarise(np.array([1.0, 2.0, 6.0]))
    assert summary == pytest.approx({"sdr_mean": 3.0, "sdr_median": 2.0, "sdr_sem": np.sqrt(7 / 3), "num": 3}, rel=1e-6)


def test_pairs_are_seeded_and_of_different_labels(evaluation):
    entries = evaluation.split.entries
    pairs = draw_pairs(entries, 20, seed=3)
    assert pairs == draw_pairs(entries, 20, seed=3)
    assert pairs != draw_pairs(entries, 20, seed=4)
    assert all(entries[p.target].label != entries[p.interferer].label for p in pairs)
    assert {p.target for p in pairs[: len(entries)]} == set(range(len(entries)))


def test_scores_are_those_of_the_estimates(evaluation):
    mixtures = evaluation.read(evaluation.pairs[:8])
    scores = evaluation.scores(mixtures)
    assert set(scores) == {"mixture", "ideal_binary_mask", "text", "image", "wrong_query", "wrong_image_query"}
    target, mixture = mixtures.sources[:, 0, :1792], mixtures.mixture[:, :1792]
    expected = 10 * np.log10((target**2).sum(-1) / ((target - mixture) ** 2).sum(-1))
    np.testing.assert_allclose(scores["mixture"], expected, rtol=1e-3, atol=1e-3)
    assert (scores["ideal_binary_mask"] > scores["mixture"]).all()
    queries = evaluation.queries(mixtures, "text")
    stems = np.asarray(evaluation.separator.separate_clips(mixtures.mixture, queries))
    expected = sdr(jnp.asarray(target), jnp.asarray(stems[:, 1, :1792]))
    np.testing.assert_allclose(scores["wrong_query"], expected, rtol=1e-4, atol=1e-4)


def test_run_scores_every_mixture_once(evaluation, tmp_path):
    summary, rows = evaluation.run(progress=False)
    assert summary["text"]["num"] + summary["skipped"]["num"] == len(rows) == 10
    assert summary["image"]["sdr_mean"] == pytest.approx(np.mean([row["image"] for row in rows]), rel=1e-5)
    path = write_scores(tmp_path / "scores", summary, rows)
    assert json.loads(path.read_text()) == summary
    assert len((tmp_path / "scores" / "mixtures.jsonl").read_text().splitlines()) == 10
    assert "wrong_query" in table(summary)


def test_unknown_split_is_refused(trained, clip_records):
    with pytest.raises(InputError, match="no split 'tset'; it has"):
        Evaluation(Separator.load(trained), RecordSet(clip_records), "tset", 4)
