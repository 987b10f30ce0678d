"""Calibration of presence: areas under curves, targets that are there and not, and the fit."""

from dataclasses import replace

import numpy as np
import pytest

import clipsep_jax
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation import calibration
from clipsep_jax.evaluation.calibration import calibrate, roc_auc, targets_of
from clipsep_jax.evaluation.protocols import drawn_protocol


def test_the_area_counts_pairs():
    rng = np.random.default_rng(0)
    scores, are_there = rng.integers(0, 6, 80).astype(np.float64), rng.random(80) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a in scores[are_there] for b in scores[~are_there]]
    assert roc_auc(scores, are_there) == pytest.approx(np.mean(pairs))
    assert roc_auc(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True])) == 1


@pytest.mark.slow
def test_a_model_is_calibrated_on_its_records(trained, clip_records, monkeypatch):
    monkeypatch.setattr(calibration, "NUM_MIXTURES", 12)
    monkeypatch.setattr(calibration, "NUM_REFERENCES", 5)
    separator, records = clipsep_jax.load(trained), RecordSet(clip_records)
    with pytest.raises(InputError, match="not calibrated"):
        targets_of(separator, records, "train")
    presence = calibrate(separator, records, "train")
    assert presence is not None
    assert presence.references.shape[0] == 5
    separator.presence = presence
    targets = targets_of(separator, records, "train")
    assert targets.are_there.sum() == presence.fit.num_present
    assert (~targets.are_there).sum() == presence.fit.num_absent
    assert roc_auc(targets.z, targets.are_there) == pytest.approx(presence.fit.auc)
    z = targets.z.astype(np.float64)
    probability = 1 / (1 + np.exp(-(presence.fit.slope * z + presence.fit.intercept)))
    assert (probability[targets.are_there] < presence.fit.threshold).mean() <= calibration.MISSED + 1e-6
    # The likeliest logistic function has residuals of mean zero.
    assert (probability - targets.are_there).mean() == pytest.approx(0, abs=1e-3)


def test_absent_targets_are_of_other_clips_and_labels(clip_records):
    mixtures = drawn_protocol(RecordSet(clip_records), "train", 12, 2).mixtures
    for number, mixture in enumerate(mixtures):
        other = mixtures[calibration._absent(number, mixtures)].clips[0]
        assert other.id not in mixture.ids
        assert other.label not in {clip.label for clip in mixture.clips}
    alone = tuple(replace(mixtures[0]) for _ in range(3))
    with pytest.raises(InputError, match="too few different labels"):
        calibration._absent(0, alone)
