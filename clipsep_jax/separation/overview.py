"""The spectrogram of a whole recording and of its stems, in as many columns as a picture shows, however long it is."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipsep_jax.files import atomic_write
from clipsep_jax.spectrogram import hann_window
from clipsep_jax.spectrogram_pictures import draw_separation

_FRAME_SAMPLES = 1_024
_MOST_COLUMNS = 1_024


class Overview:
    """Gathers the power of blocks of a mixture and its stems; columns are joined as they become too many."""

    def __init__(self, rate_hz: int):
        self._rate_hz = rate_hz
        self._waiting: np.ndarray | None = None  # samples [1 + N, L] that do not fill a frame
        self._columns: list[np.ndarray] = []  # power [1 + N, F] of so many frames each
        self._frames_a_column = 1
        self._sum: np.ndarray | float = 0.0  # of the frames of a column that is not complete
        self._num_summed = 0

    def add(self, mixture: Float32[np.ndarray, "C L"], stems: Float32[np.ndarray, "N C L"]) -> None:
        """Takes a block; channels count by their power."""
        sounds = np.concatenate([mixture[None], stems])
        whole = sounds if self._waiting is None else np.concatenate([self._waiting, sounds], axis=-1)
        count = whole.shape[-1] // _FRAME_SAMPLES
        self._waiting = whole[..., count * _FRAME_SAMPLES :]
        frames = whole[..., : count * _FRAME_SAMPLES].reshape(*whole.shape[:2], count, _FRAME_SAMPLES)
        power = (np.abs(np.fft.rfft(frames * hann_window(_FRAME_SAMPLES))) ** 2).mean(axis=1)
        for number in range(count):
            self._sum, self._num_summed = self._sum + power[:, number], self._num_summed + 1
            if self._num_summed == self._frames_a_column:
                self._columns.append(np.asarray(self._sum / self._num_summed, np.float32))
                self._sum, self._num_summed = 0.0, 0
                self._join()

    def _join(self) -> None:
        if len(self._columns) == _MOST_COLUMNS:
            pairs = zip(self._columns[::2], self._columns[1::2], strict=True)
            self._columns = [(first + second) / 2 for first, second in pairs]
            self._frames_a_column *= 2

    def draw(self, path: Path, titles: Sequence[str]) -> None:
        """Writes a PNG: the mixture, and for each stem the share of it and the result.

        A recording that is shorter than a frame gives no picture.
        """
        if not self._columns:
            return
        power = np.stack(self._columns, axis=-1)
        seconds = power.shape[-1] * self._frames_a_column * _FRAME_SAMPLES / self._rate_hz
        figure = draw_separation(power[0], power[1:], titles, seconds, self._rate_hz / 2_000)
        with atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=120)
