"""Encoding on the device, in batches of one size, what lies on the host."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, PyTree, Shaped


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
