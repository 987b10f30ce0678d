"""Sounds and queries for tests of separation."""

import numpy as np

from tests.small import QUERY_SIZE


def noise(*shape: int, level: float = 0.5) -> np.ndarray:
    return np.random.default_rng(shape[-1]).uniform(-level, level, shape).astype(np.float32)


def query(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=QUERY_SIZE).astype(np.float32)
