"""What all query encoders share."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, PyTree, Shaped, UInt8

from clipsep_jax.errors import InputError


class NoTextError(InputError):
    """A text was given to an encoder that takes pictures alone."""


@runtime_checkable
class Encoder(Protocol):
    """What turns pictures, and maybe sentences, into query embeddings on the host."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def query_size(self) -> int: ...

    def embed_frames(self, frames: UInt8[np.ndarray, "B H W 3"]) -> Float32[np.ndarray, "B Q"]: ...

    def embed_text(self, texts: list[str]) -> Float32[np.ndarray, "n Q"]: ...


def embed_in_batches(
    encode: Callable[..., Array], state: PyTree, rows: Shaped[np.ndarray, "B ..."], query_size: int, batch_size: int
) -> Float32[np.ndarray, "B Q"]:
    """Encode rows with `encode(state, batch)`; every batch is filled up to `batch_size`, so it compiles once."""
    embeddings = np.empty((len(rows), query_size), np.float32)
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        filled = np.pad(part, [(0, batch_size - len(part))] + [(0, 0)] * (rows.ndim - 1))
        embeddings[start : start + len(part)] = np.asarray(encode(state, jnp.asarray(filled)))[: len(part)]
    return embeddings
