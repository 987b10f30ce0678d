"""Embeddings of the stored pictures and of the labels, by a frozen encoder."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from clipsep_jax.queries import DEFAULT_TEMPLATE, EmbeddingTable, prompt_for
from clipsep_jax.records import Record, decode_frame


@runtime_checkable
class Encoder(Protocol):
    """What turns pictures and sentences into query embeddings, as `clipsep_jax.encoders.clip.ClipEncoder` does."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def query_size(self) -> int: ...

    def embed_frames(self, frames: UInt8[np.ndarray, "B H W 3"]) -> Float32[np.ndarray, "B Q"]: ...

    def embed_text(self, texts: list[str]) -> Float32[np.ndarray, "n Q"]: ...


def embed_records(records: Sequence[Record], encoder: Encoder, batch_size: int = 32) -> list[Record]:
    """Fill `frame_embeddings` from the stored JPEGs, so that they belong to exactly the pixels that are stored."""
    if not records:
        return []
    jpegs = [jpeg for record in records for jpeg in record.frames]
    batches = [jpegs[start : start + batch_size] for start in range(0, len(jpegs), batch_size)]
    vectors = np.concatenate([_embed_batch(batch, encoder, batch_size) for batch in batches])
    ends = np.cumsum([len(record.frames) for record in records])
    parts = np.split(vectors, ends[:-1])
    return [replace(record, frame_embeddings=part) for record, part in zip(records, parts, strict=True)]


def _embed_batch(jpegs: Sequence[bytes], encoder: Encoder, batch_size: int) -> Float32[np.ndarray, "num_frames Q"]:
    frames = np.stack([decode_frame(jpeg) for jpeg in jpegs])
    padding = np.zeros((batch_size - len(frames), *frames.shape[1:]), np.uint8)  # one shape is compiled once
    return encoder.embed_frames(np.concatenate([frames, padding]))[: len(frames)]


def label_table(labels: Sequence[str], encoder: Encoder, template: str = DEFAULT_TEMPLATE) -> EmbeddingTable:
    """Embed the prompt of every label.

    Raises:
        InputError: the template does not hold `{}` exactly once.
    """
    return EmbeddingTable(tuple(labels), encoder.embed_text([prompt_for(label, template) for label in labels]))
