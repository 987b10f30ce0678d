"""Calibrates how a model tells whether a sound is there, on mixtures of a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float

from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.estimates import DEFAULT_WAYS, ModelWays
from clipsep_jax.evaluation.mixtures import MixtureReader, needs_pictures
from clipsep_jax.evaluation.protocols import HeldOutMixture, drawn_protocol, num_sources_of
from clipsep_jax.separation.masking import share_odds
from clipsep_jax.separation.presence import Fit, Presence, standardised
from clipsep_jax.separation.separator import Separator
from clipsep_jax.spectrogram import log_warped_magnitude, stft
from clipsep_jax.terminal import say

NUM_REFERENCES = 16
NUM_MIXTURES = 128  # that give a target each that is there, and one that is not
MISSED = 0.05  # the share of targets that are there and would be silent

_BATCH = 8
_AT_ONCE = 4  # that pass the network


@dataclass(frozen=True)
class Targets:
    """Targets of mixtures, each asked for by a query.

    Attributes:
        are_there: whether a target is in its mixture.
        z: how far the log odds of its share lie above their mean in the references, in standard deviations.
        energy: of its stem, in dB.
        share_db: of the mixture's energy, in dB.
    """

    are_there: Bool[np.ndarray, " n"]
    z: Float[np.ndarray, " n"]
    energy: Float[np.ndarray, " n"]
    share_db: Float[np.ndarray, " n"]


def roc_auc(scores: Float[np.ndarray, " n"], are_there: Bool[np.ndarray, " n"]) -> float:
    """Area under the ROC curve: how often one that is there scores higher than one that is not (ties count half)."""
    there, absent = scores[are_there], scores[~are_there]
    below = np.searchsorted(np.sort(absent), there, "left") + np.searchsorted(np.sort(absent), there, "right")
    return float(below.mean() / 2 / len(absent))


def calibrate(separator: Separator, records: RecordSet, split: str = "validation") -> Presence | None:
    """The calibration by mixtures of a split; None for a model without queries.

    Raises:
        InputError: the split is missing, or its clips cannot give such queries or absent targets.
    """
    if separator.config.model.num_learned_queries:
        return None
    inputs, queries = _mixtures(separator, records, split)
    references = inputs[:NUM_REFERENCES]
    targets = _targets(separator, inputs, queries, references)
    (slope, intercept), probability = _fit(targets)
    there = targets.are_there
    fit = Fit(
        slope=slope,
        intercept=intercept,
        threshold=float(np.quantile(probability[there], MISSED, method="lower")),
        auc=roc_auc(targets.z, there),
        energy_auc=roc_auc(targets.energy, there),
        num_present=int(there.sum()),
        num_absent=int((~there).sum()),
    )
    return Presence(references, fit)


def calibrate_model(model: Path, records: Path, split: str = "validation", *, download: bool = False) -> Fit | None:
    """Writes the calibration into a model directory and says what it came out as; None for a model without queries.

    Raises:
        InputError: as `calibrate`, or the model cannot be loaded.
    """
    separator = Separator.load(model, download=download)
    presence = calibrate(separator, RecordSet(records), split)
    if presence is None:
        return None
    presence.save(separator.model_dir.folder)
    fit = presence.fit
    say(
        f"Presence, on {fit.num_present} targets of {split} that are there and {fit.num_absent} that are not: ROC AUC "
        f"{fit.auc:.3f}; by the energy of the stems {fit.energy_auc:.3f}."
    )
    return fit


def calibrate_if_possible(model: Path, records: Path) -> None:
    """Calibrates a trained model, or says why its records cannot; it separates all the same."""
    try:
        calibrate_model(model, records)
    except InputError as error:
        say(f"The model does not tell whether a sound is there: {error}", error=True)


def targets_of(separator: Separator, records: RecordSet, split: str) -> Targets:
    """Targets of held-out mixtures, told by the calibration of a model.

    Raises:
        InputError: the model is not calibrated, the split is missing, or its clips cannot give such targets.
    """
    if separator.presence is None:
        raise InputError(f"{separator.model_dir.folder} is not calibrated; run `clipsep calibrate`.")
    inputs, queries = _mixtures(separator, records, split)
    return _targets(separator, inputs, queries, separator.presence.references)


def _mixtures(separator: Separator, records: RecordSet, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Network inputs of mixtures, and two queries for each: of a source that is there, and of one that is not."""
    num_sources = num_sources_of(separator.config)
    frames = needs_pictures(separator, [records])
    protocol = drawn_protocol(records, split, NUM_MIXTURES, num_sources, frames=frames)
    reader = MixtureReader(separator.config, protocol, separator)
    model, kind = ModelWays(separator, reader, DEFAULT_WAYS), next(iter(reader.kinds))
    inputs, queries = [], []
    for start in range(0, len(protocol.mixtures), _BATCH):
        read = reader.read(protocol.mixtures[start : start + _BATCH])
        embedded = model.queries(read, kind)
        assert embedded is not None
        magnitude = jnp.abs(stft(jnp.asarray(read.mixture), separator.config.spectrogram))
        inputs.append(np.asarray(log_warped_magnitude(magnitude, separator.config.spectrogram)))
        queries.append(embedded[:, 0])
    of_target = np.concatenate(queries)
    absent = [_absent(number, protocol.mixtures) for number in range(len(of_target))]
    return np.concatenate(inputs), np.stack([of_target, of_target[absent]], axis=1)


def _absent(number: int, mixtures: Sequence[HeldOutMixture]) -> int:
    """The next mixture whose target is no clip of this one, nor has a label of it."""
    clips = mixtures[number].clips
    ids, labels = {clip.id for clip in clips}, {clip.label for clip in clips} - {""}
    for shift in range(1, len(mixtures)):
        other = (number + shift) % len(mixtures)
        if mixtures[other].ids[0] not in ids and mixtures[other].clips[0].label not in labels:
            return other
    raise InputError("The clips have too few different labels to ask for a sound that is not there.")


def _targets(separator: Separator, inputs: np.ndarray, queries: np.ndarray, references: np.ndarray) -> Targets:
    different, number_of = np.unique(queries.reshape(-1, *queries.shape[2:]), axis=0, return_inverse=True)
    number_of = number_of.reshape(queries.shape[:2])
    odds, energy = _odds_and_energy(separator, inputs, queries)
    parts = [different[start : start + _BATCH] for start in range(0, len(different), _BATCH)]
    same_for_all = [np.broadcast_to(_filled(part), (len(references), *_filled(part).shape)) for part in parts]
    of_all = [_odds_and_energy(separator, references, part)[0][:, : len(part_of)]
              for part, part_of in zip(same_for_all, parts, strict=True)]  # fmt: skip
    reference_odds = np.concatenate(of_all, axis=1)
    z = np.stack([standardised(odds[:, i][None], reference_odds[:, number_of[:, i]])[0] for i in range(2)], axis=1)
    are_there = np.broadcast_to(np.array([True, False]), z.shape)
    share_db = -10 / np.log(10) * np.logaddexp(0, -odds)
    return Targets(are_there.reshape(-1), z.reshape(-1), energy.reshape(-1), share_db.reshape(-1))


def _filled(queries: np.ndarray) -> np.ndarray:
    """Queries filled up to a batch, so that one program serves all."""
    return queries[np.arange(_BATCH) % len(queries)]


def _odds_and_energy(separator: Separator, inputs: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`share_odds` of each input by its queries, and the energy of the stems in dB; both [B N]."""
    found = []
    for start in range(0, len(inputs), _AT_ONCE):
        some = np.arange(start, start + _AT_ONCE) % len(inputs)
        logits = separator.logits_of_inputs(inputs[some], queries[some])
        found.append(_measured(logits.query, jnp.asarray(inputs[some])))
    odds, energy = (np.concatenate([np.asarray(part[i]) for part in found])[: len(inputs)] for i in range(2))
    return odds, energy


@jax.jit
def _measured(logits: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    odds = share_odds(jax.nn.sigmoid(logits), inputs)
    total = jax.scipy.special.logsumexp(2 * inputs, axis=(1, 2))[:, None]
    return odds, (jax.nn.log_sigmoid(odds) + total) * (10 / np.log(10))


def _fit(targets: Targets) -> tuple[tuple[float, float], np.ndarray]:
    """Slope and intercept of the likeliest logistic function, and its probabilities."""
    z, there = targets.z.astype(np.float64), targets.are_there

    def loss(values: np.ndarray) -> float:
        return float(np.logaddexp(0, np.where(there, -1, 1) * (values[0] * z + values[1])).mean())

    slope, intercept = scipy.optimize.minimize(loss, np.array([1.0, 0.0])).x
    return (float(slope), float(intercept)), 1 / (1 + np.exp(-(slope * z + intercept)))
