"""What all kinds of queries have in common; the kinds themselves are in `kinds.py`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32
from PIL import Image as Pillow

from clipsep_jax.config import Config
from clipsep_jax.data.batches import Batches, build_batches
from clipsep_jax.data.clips import ClipReader, QueryOf
from clipsep_jax.data.index import IndexEntry
from clipsep_jax.data.record_set import RecordSet, RecordSplit
from clipsep_jax.encoders.base import Encoder
from clipsep_jax.errors import InputError
from clipsep_jax.queries.centre import Centre
from clipsep_jax.queries.table import EmbeddingTable


@dataclass(frozen=True, eq=False)
class Example:
    """A sound like the one that is asked for.

    Attributes:
        waveform: at the sample rate of the models.
        name: for people.
    """

    waveform: Float32[np.ndarray, " L"]
    name: str = ""


Query = str | Pillow.Image | np.ndarray | Example  # what a user gives
REMEMBERED_TEXTS = 1_000


@dataclass(frozen=True)
class Embedder:
    """What a trained model has to embed a user's query with.

    Attributes:
        model: its name, for messages.
        encoder: loads its query encoder.
        table: loads its embeddings of labels.
        labels: that it was trained with, in the order of their numbers.
        centre: what it was trained to have subtracted from embeddings, if anything.
        hear: embeds the waveform of an example by the model itself.
    """

    model: str
    encoder: Callable[[], Encoder]
    table: Callable[[], EmbeddingTable]
    labels: tuple[str, ...]
    centre: Centre | None = None
    hear: Callable[[np.ndarray], Float32[np.ndarray, " Q"]] | None = None

    @cached_property
    def text(self) -> Callable[[str], Float32[np.ndarray, " Q"]]:
        """Embeds a text by the encoder, and caches the latest results."""
        return lru_cache(REMEMBERED_TEXTS)(lambda text: self.encoder().embed_text([text])[0])


def _all(query: np.ndarray, step: int) -> np.ndarray:
    return query


@dataclass(frozen=True)
class Kind:
    """A kind of query.

    Attributes:
        name: in `config.query.kind`, in the names of validation losses and of scores.
        needs_labels, needs_pictures: whether every clip must have them.
        needs_table: whether `config.query.table` must be given.
        has_encoder: whether an encoder makes the embeddings, so that the queries of a mixture can be compared.
        encodes_in_step: whether the step may encode pictures itself (`config.query.source = "frames"`).
        objectives: that can train such a model.
        scores_best_mask: whether the best of all masks is scored, which only an oracle could choose.
        hears_examples: whether a query is a sound.
    """

    name: str = ""
    needs_labels: bool = False
    needs_pictures: bool = False
    needs_table: bool = False
    has_encoder: bool = False
    encodes_in_step: bool = False
    objectives: tuple[str, ...] = ("weighted", "noise_invariant")
    scores_best_mask: bool = False
    hears_examples: bool = False

    def check(self, config: Config) -> None:
        """Checks the options that depend on the kind of query.

        Raises:
            InputError: an option contradicts it.
        """
        if bool(config.query.table) != self.needs_table:
            raise InputError('config.query.table and config.query.kind = "sentence" need each other.')
        if config.query.source == "frames" and not self.encodes_in_step:
            raise InputError('config.query.source = "frames" needs config.query.kind = "image".')
        self._check_embeddings(config)
        if config.objective.name not in self.objectives:
            allowed = " or ".join(f'"{name}"' for name in self.objectives)
            raise InputError(f'config.query.kind = "{self.name}" goes with config.objective.name = {allowed}.')
        if config.data.similar_pairs != "keep":
            self._check_similar_pairs(config)

    def _check_embeddings(self, config: Config) -> None:
        query = config.query
        if query.noise < 0:
            raise InputError(f"config.query.noise is {query.noise}; it must be at least 0.")
        if config.model.negative_query and not self.has_encoder:
            raise InputError(
                'config.model.negative_query goes with config.query.kind = "image", "text" or "hybrid", whose queries '
                "are embeddings."
            )
        changed = {"noise": query.noise > 0, "centre": query.centre, "combine": query.combine != "mean"}
        for option in filter(changed.get, changed):
            if not self.needs_pictures or query.source != "embeddings":
                raise InputError(
                    f"config.query.{option} changes stored embeddings of pictures, which needs config.query.kind = "
                    '"image" or "hybrid" and config.query.source = "embeddings".'
                )

    def _check_similar_pairs(self, config: Config) -> None:
        if not self.has_encoder or config.objective.name != "weighted":
            raise InputError(
                'config.data.similar_pairs compares CLIP queries under a weighted objective; set it to "keep" here.'
            )
        if config.data.num_sources != 2 or config.query.source != "embeddings":
            raise InputError(
                'config.data.similar_pairs compares stored embeddings of two sources; set it to "keep" here.'
            )

    def fit(self, config: Config, labels: Sequence[str]) -> Config:
        """The config with the sizes that the network takes from the kind of query and the labels of the data."""
        if config.model.network == "unet" and not self.hears_examples:
            return config
        return config.replace(model={"num_bins": config.spectrogram.num_warped_bins})

    def labels_of(self, records: RecordSet) -> tuple[str, ...]:
        """The labels that a model trained on the records can be asked for by number."""
        return ()

    def query_of(self, config: Config, records: RecordSet, centre: Centre | None = None) -> QueryOf | None:
        """The function that makes a query of a record and the numbers of the pictures around a centre.

        Args:
            centre: what to subtract from embeddings.

        Raises:
            InputError: the records cannot give such queries.
        """
        raise NotImplementedError

    def training_query_of(self, config: Config, records: RecordSet, centre: Centre | None) -> QueryOf | None:
        """The same for training, where a clip may give several queries [V Q] (`config.query.combine`)."""
        return self.query_of(config, records, centre)

    def reader(
        self,
        config: Config,
        records: RecordSet,
        source: str = "embeddings",
        centre: Centre | None = None,
        *,
        training: bool = False,
    ) -> ClipReader:
        """The reader of clips that gives queries of this kind, from stored embeddings or, for pictures, as "frames".

        Raises:
            InputError: the records cannot give such queries.
        """
        if source == "frames" and self.encodes_in_step:
            return ClipReader(config.data, config.spectrogram, None, frames=True)
        if self.hears_examples:
            return ClipReader(config.data, config.spectrogram, None, examples=True)
        query_of = self.training_query_of if training else self.query_of
        return ClipReader(config.data, config.spectrogram, query_of(config, records, centre))

    def of_step(self, query: np.ndarray, step: int) -> np.ndarray:
        """The queries of a step, from those that the reader gave."""
        return query

    def batches(
        self,
        config: Config,
        records: RecordSet,
        split: str,
        *,
        training: bool,
        centre: Centre | None = None,
        **how: Any,
    ) -> Batches:
        """Endless batches of mixtures from one split.

        Args:
            centre: what to subtract from embeddings.
            how: arguments of `build_batches`: batch_size, and the process's share.

        Raises:
            InputError: the split is missing, too small, or cannot give such queries.
        """
        reader = self.reader(config, records, config.query.source, centre, training=training)
        clips = records.split(split, with_frames=reader.frames)
        self._check_clips(clips)
        of_step = _all if training and config.query.combine != "mean" else self.of_step
        return build_batches(config, clips, reader, of_step, training=training, **how)

    def _check_clips(self, split: RecordSplit) -> None:
        unlabelled = [entry.id for entry in split.entries if not entry.label]
        if self.needs_labels and unlabelled:
            raise InputError(
                f"{len(unlabelled)} clips of the split {split.name!r} have no label ({unlabelled[0]} is one); "
                "prepare the records with --labels, or train with another --config.query.kind."
            )
        bare = [entry.id for entry in split.entries if not entry.num_frames]
        if self.needs_pictures and bare:
            raise InputError(
                f"{len(bare)} clips of the split {split.name!r} have no pictures ({bare[0]} is one); "
                "train on recordings alone with --config.query.kind=text, label, sentence or none."
            )

    @property
    def chosen_by(self) -> "Kind":
        """The kind whose validation loss chooses the best model."""
        return self

    def validated_by(self, entries: Sequence[IndexEntry], has_texts: bool) -> "tuple[Kind, ...]":
        """The kinds that a model of this kind is validated by, `chosen_by` first.

        Args:
            entries: of the validation split.
            has_texts: whether the records hold embeddings of the labels by the query encoder.
        """
        return (self.chosen_by,)

    def scored_by(self, entries: Sequence[IndexEntry]) -> "tuple[Kind, ...]":
        """The kinds of queries that a model of this kind is scored by on some clips, the chief one first.

        Raises:
            InputError: the clips cannot give such queries.
        """
        unlabelled = next((entry.id for entry in entries if not entry.label), None)
        if self.needs_labels and unlabelled is not None:
            raise InputError(f"The model is queried by labels, which clips to score lack ({unlabelled} is one).")
        return (self,)

    @property
    def score_name(self) -> str:
        """What the scores of such queries are called."""
        return "best_mask" if self.scores_best_mask else self.name

    def query_of_label(self, label: str) -> str:
        """The query that a user would type to ask for a label."""
        return label

    def embed(self, query: Query, by: Embedder) -> Float32[np.ndarray, " Q"] | np.int32:
        """Turns a user's query into what the model takes: an embedding, or the number of a label.

        Raises:
            InputError: it does not take such a query.
        """
        raise NotImplementedError

    def embed_all(
        self, queries: Sequence[Query], by: Embedder
    ) -> Float32[np.ndarray, "N Q"] | Int32[np.ndarray, " N"] | None:
        """The same for several queries, stacked; None for a model without queries.

        Raises:
            InputError: there is no query, or the model does not take one of them.
        """
        if not queries:
            raise InputError("There is no query; say what to pull out.")
        return np.stack([self.embed(query, by) for query in queries])
