"""Scores on held-out mixtures: how much of the target comes through for its query, and for the wrong one."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from clipsep_jax.data.clips import ClipReader
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.protocols import Mixtures, Pair, draw_pairs
from clipsep_jax.metrics import sdr, summarise
from clipsep_jax.mixing import binary_masks
from clipsep_jax.queries.base import Kind
from clipsep_jax.queries.kinds import IMAGE, kind_of
from clipsep_jax.separation.separator import Separator
from clipsep_jax.spectrogram import apply_masks, stft, warp

BATCH = 8


class Evaluation:
    """One model on one split.

    Attributes:
        kinds: of queries that are scored: "text" (where every clip has a label) and "image" for models of CLIP
            embeddings, "label" or "sentence" for models of those, "best_mask" for models without queries: the mask
            that fits the target best, an oracle.
    """

    def __init__(self, separator: Separator, records: RecordSet, split: str, num_mixtures: int, seed: int = 0):
        """Draws the mixtures.

        Raises:
            InputError: the split is missing, too small, or without the labels that the model needs.
        """
        self.separator, self.config = separator, separator.config
        trained_with = separator.model_dir.encoder
        has_embeddings = bool(records.encoder and trained_with and records.encoder.sha256 == trained_with.sha256)
        kind = kind_of(self.config)
        frames = kind.has_encoder and not has_embeddings
        self.split = records.split(split, with_frames=frames)
        if len(self.split) < 2:
            raise InputError(f"The split {split!r} of {records.folder} has too few clips to mix two.")
        self.pairs = draw_pairs(self.split.entries, num_mixtures, seed)
        self._kinds = {kind.score_name: kind for kind in kind.scored_by(self.split)}
        self.kinds = tuple(self._kinds)
        self._reads_images = IMAGE in self._kinds.values()
        if self._reads_images:
            self._reader = IMAGE.reader(self.config, records, "frames" if frames else "embeddings")
        else:
            self._reader = ClipReader(self.config.data, self.config.spectrogram, None)
        self._embedded: dict[str, np.ndarray | np.int32] = {}

    def read(self, pairs: Sequence[Pair]) -> Mixtures:
        """The mixtures of some pairs, cut in the middle of their clips."""
        records = [[self.split[i] for i in (pair.target, pair.interferer)] for pair in pairs]
        clips = [[self._reader(record, None) for record in row] for row in records]
        sources = np.array([[clip["sources"] for clip in row] for row in clips], np.float32) / 32768
        images = np.array([[self._image(clip) for clip in row] for row in clips]) if self._reads_images else None
        labels = [[record.label for record in row] for row in records]
        return Mixtures(sources / sources.shape[1], labels, images)

    def _image(self, clip: dict) -> np.ndarray | np.int32:
        return clip["query"] if "query" in clip else self._embed(clip["frames"])

    def _embed(self, query: str | np.ndarray) -> np.ndarray | np.int32:
        embedded = self.separator.embed([query])
        assert embedded is not None
        return embedded[0]

    def queries(self, mixtures: Mixtures, kind: str) -> np.ndarray | None:
        """What the model takes as queries for both sources, [B N Q] or [B N], or None."""
        chosen = self._kinds[kind]
        if chosen == IMAGE or chosen.scores_best_mask:
            return mixtures.images
        return np.stack([[self._label_query(label, chosen) for label in labels] for labels in mixtures.labels])

    def _label_query(self, label: str, kind: Kind) -> np.ndarray | np.int32:
        if label not in self._embedded:
            self._embedded[label] = self._embed(kind.query_of_label(label))
        return self._embedded[label]

    def scores(self, mixtures: Mixtures) -> dict[str, np.ndarray]:
        """SDR in dB of the target in every mixture, for each way to estimate it."""
        mixture = mixtures.mixture
        scores = {
            "mixture": self._sdr(mixtures, mixture),
            "ideal_binary_mask": self._sdr(mixtures, self._ideal(mixtures)),
        }
        for kind in self.kinds:
            stems = np.asarray(self.separator.separate_clips(mixture, self.queries(mixtures, kind)))
            each = np.stack([self._sdr(mixtures, stems[:, n]) for n in range(stems.shape[1])])
            if self._kinds[kind].scores_best_mask:
                scores[kind] = each.max(axis=0)
            else:
                scores[kind], wrong = each
                scores["wrong_query" if kind == self.kinds[0] else f"wrong_{kind}_query"] = wrong
        return scores

    def _sdr(self, mixtures: Mixtures, estimate: np.ndarray) -> np.ndarray:
        length = self.config.spectrogram.hop_samples * (self.config.spectrogram.num_frames - 1)
        return np.asarray(sdr(mixtures.sources[:, 0, :length], estimate[:, :length]))

    def _ideal(self, mixtures: Mixtures) -> np.ndarray:
        """The target through its true binary mask: what a perfect prediction of the training target would give."""
        spectrogram = self.config.spectrogram
        mixed = stft(jnp.asarray(mixtures.mixture), spectrogram)
        magnitude = warp(jnp.abs(stft(jnp.asarray(mixtures.sources[:, :1]), spectrogram)), spectrogram)
        mask = binary_masks(magnitude, warp(jnp.abs(mixed) + 1e-10, spectrogram))
        length = mixtures.sources.shape[-1]
        return np.asarray(apply_masks(mask.astype(magnitude.dtype), mixed, spectrogram, length))[:, 0]

    def run(self, *, progress: bool = True) -> tuple[dict[str, dict], list[dict]]:
        """Summaries by way of estimation, and a row a mixture.

        Mixtures with a silent source at the cut have no SDR; they are left out and counted as `skipped`.
        """
        rows: list[dict] = []
        batches = [self.pairs[i : i + BATCH] for i in range(0, len(self.pairs), BATCH)]
        for pairs in tqdm(batches, desc="evaluate", unit="batch", disable=not progress):
            filled = [*pairs, *[pairs[-1]] * (BATCH - len(pairs))]
            mixtures = self.read(filled)
            scores = self.scores(mixtures)
            for i, pair in enumerate(pairs):
                names = {"target": self._id(pair.target), "interferer": self._id(pair.interferer)}
                rows.append(names | {name: float(values[i]) for name, values in scores.items()})
        kinds = [name for name in rows[0] if name not in ("target", "interferer")]
        kept = [row for row in rows if np.isfinite(row["mixture"])]
        if not kept:
            raise InputError("Every mixture has a silent source where it is cut; there is nothing to score.")
        broken = [kind for kind in kinds if not all(np.isfinite(row[kind]) for row in kept)]
        if broken:
            raise InputError(f"The estimates by {', '.join(broken)} hold values that are no numbers; train again.")
        summary = {kind: summarise(np.array([row[kind] for row in kept])) for kind in kinds}
        return summary | {"skipped": {"num": len(rows) - len(kept)}}, rows

    def _id(self, number: int) -> str:
        return self.split.entries[number].id
