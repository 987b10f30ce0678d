"""Embeddings of stored pictures and of labels, by a frozen encoder."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from clipsep_jax.data.record import Record, decode_frame
from clipsep_jax.encoders.base import Encoder
from clipsep_jax.queries.prompts import DEFAULT_TEMPLATE, prompt_for
from clipsep_jax.queries.table import EmbeddingTable


def embed_records(records: Sequence[Record], encoder: Encoder, batch_size: int = 32) -> list[Record]:
    """Fill `frame_embeddings` from the stored JPEGs, so that they match the stored pixels exactly."""
    if not records:
        return []
    jpegs = [jpeg for record in records for jpeg in record.frames]
    batches = [jpegs[start : start + batch_size] for start in range(0, len(jpegs), batch_size)]
    nothing = np.zeros((0, encoder.query_size), np.float32)
    vectors = np.concatenate([nothing, *(_embed_batch(batch, encoder, batch_size) for batch in batches)])
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
        NoTextError: the encoder takes only pictures.
        InputError: the template does not hold `{}` exactly once.
    """
    return EmbeddingTable(tuple(labels), encoder.embed_text([prompt_for(label, template) for label in labels]))
