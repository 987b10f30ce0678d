"""The sound of a file, for tests."""

from pathlib import Path

import numpy as np

from clipsep_jax.sound_files import open_sound


def read_sound(path: Path, max_seconds: int = 3_600) -> tuple[np.ndarray, int]:
    """The samples [C L] of a file, and its rate."""
    with open_sound(path, max_seconds) as sound:
        blocks = list(sound)
        assert {len(block) for block in blocks} == {sound.num_channels}
        return np.concatenate(blocks, axis=-1), sound.rate_hz
