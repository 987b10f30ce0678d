"""Where chunks lie on the one grid of frames of a recording, and how their masks are cross-faded.

Chunk k starts at frame k * hop. Weights of all chunks that cover a frame add up to one. A last chunk ends where the
recording does, and takes the weight that the others leave.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float64

EDGE_FRAMES = 4  # at both ends of a chunk, where the network knows least, that count only where nothing else lies


@dataclass(frozen=True)
class ChunkPlan:
    """Chunks of a fixed number of frames.

    Attributes:
        num_frames: of a chunk, T.
        overlap: the share of a chunk that the next one covers too.
        fade: how a chunk's weight rises where two overlap.
    """

    num_frames: int
    overlap: float = 0.125
    fade: Literal["linear", "cosine"] = "linear"

    @property
    def hop(self) -> int:
        """Frames from the start of a chunk to that of the next."""
        return self.num_frames - max(2, round(self.num_frames * self.overlap))

    @property
    def edge(self) -> int:
        """Frames at the beginning of a chunk, but for the first, that have no weight."""
        return min(EDGE_FRAMES, (self.num_frames - self.hop) // 4 or 1)

    def weights(self, number: int) -> Float64[np.ndarray, " T"]:
        """The weights of a chunk that another one follows."""
        return _weights(self, min(number, -(-self.num_frames // self.hop)))

    def fits(self, number: int, num_frames: int) -> bool:
        """Whether a chunk ends before the last frame of a recording of so many, so that another one follows."""
        return self.hop * number + self.num_frames < num_frames


@lru_cache(maxsize=64)
def _weights(plan: ChunkPlan, number: int) -> np.ndarray:
    around = range(-number, -(-plan.num_frames // plan.hop) + 1)
    total = np.zeros(plan.num_frames)
    for other in around:
        shift = other * plan.hop
        shape = _shape(plan, first=other == -number)
        start, end = max(0, shift), min(plan.num_frames, shift + plan.num_frames)
        if start < end:
            total[start:end] += shape[start - shift : end - shift]
    return _shape(plan, first=number == 0) / total


def _shape(plan: ChunkPlan, *, first: bool) -> np.ndarray:
    """Weights before they are made to add up to one."""
    ramp = min(plan.num_frames - plan.hop, plan.num_frames // 2) - 2 * plan.edge
    place = (np.arange(plan.num_frames) - plan.edge + 0.5) / max(1, ramp)
    rise = np.clip(place, 0, 1)
    if plan.fade == "cosine":
        rise = (1 - np.cos(np.pi * rise)) / 2
    return np.minimum(1 if first else rise, rise[::-1])
