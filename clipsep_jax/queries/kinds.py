"""The kinds of queries, one class each.

A kind says what records must hold, how a record gives its query, how a user's query is embedded or refused, and what a
model of that kind is validated and scored by. To add one: a class here, its name in `config.QueryKind`, a file in
configs/, a test.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image as Pillow

from clipsep_jax.config import Config
from clipsep_jax.data.clips import QueryOf
from clipsep_jax.data.index import IndexEntry
from clipsep_jax.data.record_set import LABEL_EMBEDDINGS_NAME, RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.models.audio_encoder import LEAST_BINS
from clipsep_jax.queries.base import Embedder, Example, Kind, Query
from clipsep_jax.queries.centre import Centre
from clipsep_jax.queries.of_records import Less, OfLabel, Several, each_picture, mean_of_pictures
from clipsep_jax.queries.prompts import nearest_labels, prompt_for
from clipsep_jax.queries.table import EmbeddingTable


@dataclass(frozen=True)
class Encoded(Kind):
    """Queries in the space of an encoder that embeds pictures and, if it is a CLIP, texts."""

    has_encoder: bool = True

    def validated_by(self, entries: Sequence[IndexEntry], has_texts: bool) -> tuple[Kind, ...]:
        """If pictures choose the model and every clip has a label with an embedding, texts validate it too."""
        chosen = self.chosen_by
        texts = chosen.needs_pictures and has_texts and all(entry.label for entry in entries)
        return (chosen, TEXT) if texts else (chosen,)

    def scored_by(self, entries: Sequence[IndexEntry]) -> tuple[Kind, ...]:
        """Texts where every clip has a label, and pictures where every clip has some."""
        possible = {TEXT: all(entry.label for entry in entries), IMAGE: all(entry.num_frames for entry in entries)}
        if not any(possible.values()):
            raise InputError("The clips to score have neither labels nor pictures to query the model by.")
        return tuple(kind for kind, is_possible in possible.items() if is_possible)

    def embed(self, query: Query, by: Embedder) -> Float32[np.ndarray, " Q"]:
        """The embedding of a text, a picture, or an array of pictures [R H W 3] (averaged), less its centre.

        An embedding [Q] stays as it is.
        """
        if isinstance(query, np.ndarray) and query.ndim == 1:
            return query.astype(np.float32)
        if isinstance(query, str):
            return by.text(query) - by.centre.text if by.centre else by.text(query)
        if isinstance(query, Example):
            raise InputError(f"{by.model} is asked by texts and pictures, not by example sounds.")
        pictures = np.asarray(query.convert("RGB"))[None] if isinstance(query, Pillow.Image) else query
        embedding = by.encoder().embed_frames(_as_pictures(pictures)).mean(axis=0)
        return embedding - by.centre.image if by.centre else embedding


@dataclass(frozen=True)
class Image(Encoded):
    """The mean embedding of a few pictures around the centre of a clip."""

    name: str = "image"
    needs_pictures: bool = True
    encodes_in_step: bool = True

    def query_of(self, config: Config, records: RecordSet, centre: Centre | None = None) -> QueryOf:
        _check_embeddings(config, records)
        return Less(mean_of_pictures, centre.image) if centre else mean_of_pictures

    def training_query_of(self, config: Config, records: RecordSet, centre: Centre | None) -> QueryOf:
        if config.query.combine == "mean":
            return self.query_of(config, records, centre)
        _check_embeddings(config, records)
        return Less(each_picture, centre.image) if centre else each_picture


@dataclass(frozen=True)
class Text(Encoded):
    """The embedding of a prompt with the label of a clip."""

    name: str = "text"
    needs_labels: bool = True

    def query_of(self, config: Config, records: RecordSet, centre: Centre | None = None) -> QueryOf:
        _check_embeddings(config, records)
        of_label = OfLabel(EmbeddingTable.load(records.folder / LABEL_EMBEDDINGS_NAME).as_dict())
        return Less(of_label, centre.text) if centre else of_label

    def query_of_label(self, label: str) -> str:
        return prompt_for(label)


@dataclass(frozen=True)
class Hybrid(Encoded):
    """Pictures on even steps, texts on odd ones; or in training, where `config.query.combine` says so, both at once."""

    name: str = "hybrid"
    needs_labels: bool = True
    needs_pictures: bool = True

    def query_of(self, config: Config, records: RecordSet, centre: Centre | None = None) -> QueryOf:
        """Both, [2, Q]; `of_step` takes one."""
        return Several((IMAGE.query_of(config, records, centre), TEXT.query_of(config, records, centre)))

    def training_query_of(self, config: Config, records: RecordSet, centre: Centre | None) -> QueryOf:
        pictures = IMAGE.training_query_of(config, records, centre)
        return Several((pictures, TEXT.query_of(config, records, centre)))

    def of_step(self, query: np.ndarray, step: int) -> np.ndarray:
        return query[:, :, step % 2]

    @property
    def chosen_by(self) -> Kind:
        return IMAGE


@dataclass(frozen=True)
class Label(Kind):
    """The number of a clip's label among the sorted labels of the records; the model learns an embedding of each."""

    name: str = "label"
    needs_labels: bool = True

    def fit(self, config: Config, labels: Sequence[str]) -> Config:
        return super().fit(config, labels).replace(model={"num_labels": len(labels)})

    def labels_of(self, records: RecordSet) -> tuple[str, ...]:
        return records.labels

    def query_of(self, config: Config, records: RecordSet, centre: Centre | None = None) -> QueryOf:
        return OfLabel({label: np.array(number, np.int32) for number, label in enumerate(records.labels)})

    def embed(self, query: Query, by: Embedder) -> np.int32:
        """The number of one of the model's labels."""
        if not isinstance(query, str) or query not in by.labels:
            raise InputError(
                f"{by.model} takes one of its {len(by.labels)} labels as a query, not {query!r}; "
                f"the nearest are {', '.join(nearest_labels(str(query), by.labels))}."
            )
        return np.int32(by.labels.index(query))


@dataclass(frozen=True)
class Sentence(Kind):
    """The embedding of a clip's label in a table, made by any sentence encoder."""

    name: str = "sentence"
    needs_labels: bool = True
    needs_table: bool = True

    def query_of(self, config: Config, records: RecordSet, centre: Centre | None = None) -> QueryOf:
        table = EmbeddingTable.load(Path(config.query.table))
        _check_query_size(config, config.query.table, table.vectors.shape[1])
        return OfLabel(table.as_dict())

    def embed(self, query: Query, by: Embedder) -> Float32[np.ndarray, " Q"]:
        """The embedding of one of the table's labels; an embedding [Q] as it is."""
        if isinstance(query, np.ndarray) and query.ndim == 1:
            return query.astype(np.float32)
        if not isinstance(query, str):
            raise InputError(f"{by.model} takes labels of its table, not {type(query).__name__}; give such a label.")
        return by.table().lookup(query)


@dataclass(frozen=True)
class Audio(Kind):
    """Another segment of a clip's sound, which the model itself embeds; needs neither labels nor pictures."""

    name: str = "audio"
    hears_examples: bool = True

    def fit(self, config: Config, labels: Sequence[str]) -> Config:
        return super().fit(config, labels).replace(model={"hears_examples": 1})

    def check(self, config: Config) -> None:
        super().check(config)
        if config.spectrogram.num_warped_bins < LEAST_BINS:
            raise InputError(
                "The encoder of examples halves the spectrogram to nothing; choose config.spectrogram.num_warped_bins "
                f"of at least {LEAST_BINS}."
            )

    def query_of(self, config: Config, records: RecordSet, centre: Centre | None = None) -> None:
        return None

    def embed(self, query: Query, by: Embedder) -> Float32[np.ndarray, " Q"]:
        """The embedding of an example; an embedding [Q] as it is."""
        if isinstance(query, np.ndarray) and query.ndim == 1:
            return query.astype(np.float32)
        if not isinstance(query, Example) or by.hear is None:
            raise InputError(f"{by.model} is asked by example sounds; give one with --example FILE.")
        return by.hear(query.waveform)


@dataclass(frozen=True)
class NoQuery(Kind):
    """No query at all: the model tells the sources of a mixture apart, in an order of its own."""

    name: str = "none"
    objectives: tuple[str, ...] = ("permutation_invariant", "mixture_invariant")
    scores_best_mask: bool = True

    def check(self, config: Config) -> None:
        super().check(config)
        if config.model.fusion != "late" or config.model.num_noise_heads:
            raise InputError(
                'config.query.kind = "none" needs config.model.fusion = "late" and has neither noise heads nor labels.'
            )

    def fit(self, config: Config, labels: Sequence[str]) -> Config:
        num_masks = config.model.num_masks or config.data.num_sources
        return super().fit(config, labels).replace(model={"num_learned_queries": num_masks})

    def query_of(self, config: Config, records: RecordSet, centre: Centre | None = None) -> None:
        return None

    def embed_all(self, queries: Sequence[Query], by: Embedder) -> None:
        if queries:
            raise InputError(f"{by.model} separates without queries; give none.")


IMAGE, TEXT, AUDIO = Image(), Text(), Audio()
KINDS = {kind.name: kind for kind in (IMAGE, TEXT, Hybrid(), Label(), Sentence(), AUDIO, NoQuery())}


def kind_of(config: Config) -> Kind:
    """The kind of a config's queries."""
    return KINDS[config.query.kind]


def _check_embeddings(config: Config, records: RecordSet) -> None:
    if records.query_size is None:
        raise InputError(
            f"{records.folder} holds no embeddings; prepare it with --clip, or train with --config.query.source=frames."
        )
    _check_query_size(config, str(records.folder), records.query_size)


def _check_query_size(config: Config, where: str, size: int) -> None:
    if size != config.model.query_size:
        raise InputError(
            f"{where} holds embeddings of size {size}, the config expects {config.model.query_size}; "
            f"set --config.model.query_size={size}."
        )


def _as_pictures(pictures: np.ndarray) -> UInt8[np.ndarray, "R H W 3"]:
    if pictures.ndim != 4 or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
        raise InputError(f"Pictures must be uint8 of shape [R, H, W, 3], not {pictures.dtype} {pictures.shape}.")
    return pictures
