"""Metrics against museval and mir_eval."""

import json

import numpy as np
import pytest

from clipsep_jax.metrics import METRICS, bss_eval, score, sdr, si_sdr, summarise
from tests.evaluation.bss_pairs import SCORES, by_museval, load_museval, pairs


def test_sdr_is_the_plain_ratio():
    rng = np.random.default_rng(0)
    reference, error = rng.normal(size=(2, 5, 1000))
    expected = 10 * np.log10((reference**2).sum(-1) / (error**2).sum(-1))
    np.testing.assert_allclose(sdr(reference, reference + error), expected, rtol=1e-12)


def test_si_sdr_does_not_know_scale():
    rng = np.random.default_rng(0)
    reference, other = rng.normal(size=(2, 1000))
    other -= reference * (other @ reference) / (reference @ reference)
    expected = 10 * np.log10((reference**2).sum() / (0.01 * other**2).sum())
    for scale in (1.0, 0.1, 30.0):
        assert si_sdr(reference, scale * (reference + 0.1 * other)) == pytest.approx(expected, abs=1e-9)


def test_scores_are_those_of_museval_and_mir_eval():
    """SDR to 1e-6 dB, SIR and SAR to 1e-4 dB, with nearly dependent sources too."""
    for (sources, estimates), expected in zip(pairs(), json.loads(SCORES.read_text()), strict=True):
        np.testing.assert_allclose(sdr(sources, estimates), expected["museval 0.4.1"]["sdr"], rtol=0, atol=1e-6)
        ours = bss_eval(sources, estimates)
        for theirs in expected.values():
            np.testing.assert_allclose(ours.sdr, theirs["sdr_v3"], rtol=0, atol=1e-6)
            np.testing.assert_allclose(ours.sir, theirs["sir"], rtol=0, atol=1e-4)
            np.testing.assert_allclose(ours.sar, theirs["sar"], rtol=0, atol=1e-4)


@pytest.mark.skipif(load_museval() is None, reason="museval is not installed")
def test_the_frozen_scores_are_those_that_museval_gives():
    for (sources, estimates), expected in zip(pairs()[::5], json.loads(SCORES.read_text())[::5], strict=True):
        for name, values in by_museval(load_museval(), sources, estimates).items():
            np.testing.assert_allclose(values, expected["museval 0.4.1"][name], rtol=0, atol=1e-6)


def test_estimates_of_a_target_are_scored_as_by_bss_eval():
    sources, estimates = pairs()[0]
    found = score(METRICS, sources, np.stack([estimates[0], sources.sum(axis=0)]))
    assert list(found) == list(METRICS)
    whole = bss_eval(sources, estimates)
    for name, value in (("sdr_v3", whole.sdr[0]), ("sir", whole.sir[0]), ("sar", whole.sar[0])):
        assert found[name][0] == pytest.approx(value, abs=1e-9)
    assert found["sdr"][0] == pytest.approx(sdr(sources[0], estimates[0]), abs=1e-12)
    assert found["si_sdr"][1] == pytest.approx(si_sdr(sources[0], sources.sum(axis=0)), abs=1e-12)


def test_one_source_has_no_interference():
    sources, estimates = pairs()[0]
    scores = bss_eval(sources[0], estimates[0])
    assert scores.sdr.shape == (1,)
    assert scores.sdr == pytest.approx(scores.sar)
    assert scores.sir > 150


@pytest.mark.parametrize(
    ("reference", "estimate"), [((2, 2000), (2000,)), ((2, 2000), (1, 2000)), ((2, 2000, 1), (2, 2000, 1)), ((), ())]
)
def test_other_shapes_are_refused(reference, estimate):
    with pytest.raises(ValueError, match=r"must have one shape, \[N, L\] or \[L\]"):
        bss_eval(np.ones(reference), np.ones(estimate))


def test_sounds_shorter_than_the_filters_are_refused():
    with pytest.raises(ValueError, match="at least 512 samples, not 511"):
        bss_eval(np.ones((2, 511)), np.ones((2, 511)))


def test_a_silent_source_and_a_perfect_estimate_have_no_finite_score():
    sources, _ = pairs()[0]
    assert sdr(np.zeros(9), np.ones(9)) == -np.inf
    assert sdr(sources[0], sources[0]) == np.inf
    assert np.isnan(si_sdr(np.zeros(9), np.ones(9)))
    assert not np.isfinite(bss_eval(np.stack([sources[0], 0 * sources[0]]), sources).sdr[1])


def test_summary_has_mean_median_and_standard_error():
    summary = summarise({"sdr": np.array([1.0, 2.0, 6.0])})
    assert summary == pytest.approx({"sdr_mean": 3.0, "sdr_median": 2.0, "sdr_sem": np.sqrt(7 / 3), "num": 3}, rel=1e-6)
