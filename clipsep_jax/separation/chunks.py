"""A recording of any length through a separator of short clips: chunks that overlap by half and are cross-faded."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float32
from tqdm import tqdm

CHUNKS_AT_ONCE = 4


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


def separate_in_chunks(
    waveform: Float[np.ndarray, " L"],
    chunk: int,
    num_stems: int,
    separate: Callable[[np.ndarray], np.ndarray],
    *,
    progress: bool = False,
) -> Float32[np.ndarray, "N L"]:
    """Separates a recording chunk by chunk, and adds the chunks up where they lie, weighted by `triangle`.

    Args:
        waveform: not empty; where it is shorter than a chunk, it is repeated to fill one, as in training.
        chunk: samples of a chunk.
        num_stems: how many stems `separate` gives, N.
        separate: from CHUNKS_AT_ONCE chunks [B chunk] to their stems [B N chunk].
        progress: show a bar on stderr.
    """
    stems = np.zeros((num_stems, len(waveform)), np.float32)
    total = np.zeros(len(waveform), np.float32)
    starts, fade = chunk_starts(len(waveform), chunk), triangle(chunk)
    for first in tqdm(range(0, len(starts), CHUNKS_AT_ONCE), unit="chunks", disable=not progress):
        some = starts[first : first + CHUNKS_AT_ONCE]
        for start, separated in zip(some, separate(_cut(waveform, some, chunk))[: len(some)], strict=True):
            length = min(chunk, len(waveform) - start)
            stems[:, start : start + length] += separated[:, :length] * fade[:length]
            total[start : start + length] += fade[:length]
    stems /= total
    return stems


def _cut(waveform: np.ndarray, starts: Sequence[int], chunk: int) -> Float32[np.ndarray, "B L"]:
    """The chunks at `starts`, filled up with silence to CHUNKS_AT_ONCE so that one program serves all."""
    chunks = np.zeros((CHUNKS_AT_ONCE, chunk), np.float32)
    for row, start in zip(chunks, starts, strict=False):
        row[:] = np.resize(waveform[start : start + chunk], chunk)
    return chunks
