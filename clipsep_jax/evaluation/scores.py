"""Scores on held-out mixtures: how much of the target comes through for its query, and for the wrong one."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from clipsep_jax.data.clips import ClipReader
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.protocols import DrawnMixture, Mixtures, draw_mixtures, num_sources_of
from clipsep_jax.metrics import CHIEF, METRICS, summarise
from clipsep_jax.mixing import binary_masks
from clipsep_jax.queries.base import Query
from clipsep_jax.queries.kinds import IMAGE, kind_of
from clipsep_jax.separation.separator import Separator
from clipsep_jax.spectrogram import apply_masks, stft, warp

BATCH = 8

Scores = dict[str, dict[str, np.ndarray]]  # by way of estimation and metric, one number per mixture


class Evaluation:
    """One model on one split.

    Attributes:
        kinds: of queries that are scored: "text" (where every clip has a label) and "image" for models of CLIP
            embeddings, "label" or "sentence" for models of those, "best_mask" for models without queries: the mask
            that fits the target best, an oracle.
        drawn: the mixtures that `run` scores.
    """

    def __init__(self, separator: Separator, records: RecordSet, split: str, num_mixtures: int, seed: int = 0):
        """Draws the mixtures, of as many sources as the model was trained with.

        Raises:
            InputError: the split is missing, too small, or without the labels that the model needs.
        """
        self.separator, self.config = separator, separator.config
        trained_with = separator.model_dir.encoder
        has_embeddings = bool(records.encoder and trained_with and records.encoder.sha256 == trained_with.sha256)
        kind = kind_of(self.config)
        frames = kind.has_encoder and not has_embeddings
        self.split = records.split(split, with_frames=frames)
        num_sources = num_sources_of(self.config)
        if len(self.split) < num_sources:
            raise InputError(
                f"The split {split!r} of {records.folder} has too few clips for mixtures of {num_sources}."
            )
        self.drawn = draw_mixtures(self.split.entries, num_mixtures, num_sources, seed=seed)
        self._kinds = {kind.score_name: kind for kind in kind.scored_by(self.split)}
        self.kinds = tuple(self._kinds)
        self._reads_images = IMAGE in self._kinds.values()
        if self._reads_images:
            self._reader = IMAGE.reader(self.config, records, "frames" if frames else "embeddings")
        else:
            self._reader = ClipReader(self.config.data, self.config.spectrogram, None)
        self._length = self.config.spectrogram.hop_samples * (self.config.spectrogram.num_frames - 1)  # that is scored
        self._embedded_frames: dict[int, np.ndarray] = {}

    def read(self, drawn: Sequence[DrawnMixture]) -> Mixtures:
        """Some of the mixtures, cut in the middle of their clips."""
        records = [[self.split.clip(i) for i in mixture.clips] for mixture in drawn]
        clips = [[self._reader(record, None) for record in row] for row in records]
        sources = np.array([[clip["sources"] for clip in row] for row in clips], np.float32) / 32768
        labels = [[record.label for record in row] for row in records]
        images = None
        if self._reads_images:
            numbers = [mixture.clips for mixture in drawn]
            images = np.array([list(map(self._image, *row)) for row in zip(numbers, clips, strict=True)])
        return Mixtures(sources / sources.shape[1], labels, images)

    def _image(self, number: int, clip: dict) -> np.ndarray:
        """The stored embedding of a clip's pictures, or else that of the model's encoder, made once per clip."""
        if "query" in clip:
            return clip["query"]
        if number not in self._embedded_frames:
            (self._embedded_frames[number],) = self._embed([clip["frames"]])
        return self._embedded_frames[number]

    def _embed(self, queries: Sequence[Query]) -> np.ndarray:
        embedded = self.separator.embed(queries)
        assert embedded is not None
        return embedded

    def queries(self, mixtures: Mixtures, kind: str) -> np.ndarray | None:
        """What the model takes as queries for all sources, [B N Q] or [B N], or None."""
        chosen = self._kinds[kind]
        if chosen == IMAGE or chosen.scores_best_mask:
            return mixtures.images
        return np.stack([self._embed([chosen.query_of_label(label) for label in row]) for row in mixtures.labels])

    def scores(self, mixtures: Mixtures) -> Scores:
        """Every metric of the target in every mixture, for each way to estimate it.

        A wrong query is one for another source of the mixture. Scores of several are averaged: unlike the best of
        them, the mean does not rise with their number.
        """
        mixture = mixtures.mixture
        scores = {
            "mixture": self._score(mixtures, mixture),
            "ideal_binary_mask": self._score(mixtures, self._ideal(mixtures)),
        }
        for kind in self.kinds:
            stems = np.asarray(self.separator.separate_clips(mixture, self.queries(mixtures, kind)))
            each = [self._score(mixtures, stems[:, n]) for n in range(stems.shape[1])]
            by_stem = {metric: np.stack([stem[metric] for stem in each]) for metric in each[0]}
            if self._kinds[kind].scores_best_mask:
                scores[kind] = {metric: values.max(axis=0) for metric, values in by_stem.items()}
            else:
                wrong = "wrong_query" if kind == self.kinds[0] else f"wrong_{kind}_query"
                scores[kind] = {metric: values[0] for metric, values in by_stem.items()}
                scores[wrong] = {metric: values[1:].mean(axis=0) for metric, values in by_stem.items()}
        return scores

    def _score(self, mixtures: Mixtures, estimate: np.ndarray) -> dict[str, np.ndarray]:
        target, estimate = mixtures.sources[:, 0, : self._length], estimate[:, : self._length]
        return {name: np.asarray(metric.score(target, estimate)) for name, metric in METRICS.items()}

    def _ideal(self, mixtures: Mixtures) -> np.ndarray:
        """The target through its true binary mask: what a perfect prediction of the training target would give."""
        spectrogram = self.config.spectrogram
        mixed = stft(jnp.asarray(mixtures.mixture), spectrogram)
        magnitude = warp(jnp.abs(stft(jnp.asarray(mixtures.sources[:, :1]), spectrogram)), spectrogram)
        mask = binary_masks(magnitude, warp(jnp.abs(mixed) + 1e-10, spectrogram))
        length = mixtures.sources.shape[-1]
        return np.asarray(apply_masks(mask.astype(magnitude.dtype), mixed, spectrogram, length))[:, 0]

    def run(self, *, progress: bool = True) -> tuple[dict[str, dict], list[dict]]:
        """Summaries by way of estimation, and a row per mixture.

        Mixtures cut where a source is silent are left out of the summaries and counted as `skipped`: there is nothing
        to separate, and no SDR if the target or everything else is silent.

        Raises:
            InputError: every mixture has a silent source, or the model gives values that are not finite.
        """
        rows: list[dict] = []
        audible: list[bool] = []  # whether all sources of a row are
        batches = [self.drawn[i : i + BATCH] for i in range(0, len(self.drawn), BATCH)]
        for drawn in tqdm(batches, desc="evaluate", unit="batch", disable=not progress):
            mixtures = self.read([*drawn, *[drawn[-1]] * (BATCH - len(drawn))])
            scores = self.scores(mixtures)
            rows += [self._row(mixture, scores, i) for i, mixture in enumerate(drawn)]
            audible += [bool(row.any(axis=-1).all()) for row in mixtures.sources[: len(drawn), :, : self._length]]
        kept = [row for row, is_audible in zip(rows, audible, strict=True) if is_audible]
        return _summary(list(scores), kept) | {"skipped": {"num": len(rows) - len(kept)}}, rows

    def _row(self, mixture: DrawnMixture, scores: Scores, number: int) -> dict:
        """The clips of a mixture by their ids, and its scores."""
        target, *interferers = (self.split.entries[clip].id for clip in mixture.clips)
        others = {"interferer": interferers[0]} if len(interferers) == 1 else {"interferers": interferers}
        values = {
            _column(estimate, metric): float(values[number])
            for estimate, by_metric in scores.items()
            for metric, values in by_metric.items()
        }
        return {"target": target, **others, **values}


def _column(estimate: str, metric: str) -> str:
    """The name in a row of the score of an estimate."""
    return estimate if metric == CHIEF else f"{metric}_{estimate}"


def _summary(estimates: Sequence[str], rows: Sequence[dict]) -> dict[str, dict]:
    """Each metric's figures by way of estimation."""
    if not rows:
        raise InputError("Every mixture has a silent source where it is cut; there is nothing to score.")
    broken = [name for name in estimates if not all(np.isfinite(row[_column(name, CHIEF)]) for row in rows)]
    if broken:
        raise InputError(f"The estimates by {', '.join(broken)} hold values that are not finite; train again.")
    return {
        name: summarise({metric: np.array([row[_column(name, metric)] for row in rows]) for metric in METRICS})
        for name in estimates
    }
