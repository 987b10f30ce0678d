"""Random parameters from ranges of which training and testing see different bands.

Every range is cut into ten cells. Two inner cells belong to "test", the other eight to "train": a test value is
never seen in training, yet lies between values that are.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

Split = Literal["train", "test"]
Number = int | float

NUM_CELLS = 10
TEST_CELLS = (3, 6)
_CELLS = {"train": tuple(set(range(NUM_CELLS)) - set(TEST_CELLS)), "test": TEST_CELLS}


class Parameters:
    """Draws values for one split, reproducibly from `rng`; `rng` itself serves what has no range, such as noise."""

    def __init__(self, rng: np.random.Generator, split: Split):
        self.rng = rng
        self._cells = np.array(_CELLS[split])

    def between(self, low: Number, high: Number) -> float:
        """A value of [low, high) in one of the split's cells."""
        return float(self.several_between(low, high, 1)[0])

    def several_between(self, low: Number, high: Number, count: int) -> Float[np.ndarray, " count"]:
        """`count` independent values of [low, high), each in one of the split's cells."""
        fraction = (self.rng.choice(self._cells, count) + self.rng.random(count)) / NUM_CELLS
        return low + (high - low) * fraction

    def pitches(self, low_hz: Number, high_hz: Number, count: int) -> Float[np.ndarray, " count"]:
        """`count` independent frequencies in Hz, in the split's cells of the logarithmic range."""
        return np.exp(self.several_between(np.log(low_hz), np.log(high_hz), count))
