"""Where the chunks of a long recording begin, and how they are cross-faded."""

import numpy as np
from jaxtyping import Float32


def chunk_starts(length: int, chunk: int) -> list[int]:
    """Starts of chunks that overlap by half; the last one ends where the recording does."""
    if length <= chunk:
        return [0]
    hop = (chunk + 1) // 2
    return [*range(0, length - chunk, hop), length - chunk]


def triangle(size: int) -> Float32[np.ndarray, " n"]:
    """Cross-fading weights of a chunk, above zero everywhere."""
    rise = np.arange(1, size + 1)
    return (np.minimum(rise, rise[::-1]) / ((size + 1) // 2)).astype(np.float32)
