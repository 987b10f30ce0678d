"""From a record to one source of a mixture, cut as the official code does: a centre picture, audio around its time, a
few pictures around it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int16, UInt8

from clipsep_jax.config import DataConfig, SpectrogramConfig
from clipsep_jax.data.record import FRAMES_PER_SECOND, CorruptRecordError, Record, decode_frame
from clipsep_jax.data.stored import StoredArray, StoredRecord
from clipsep_jax.errors import InputError


def centre_range(num_frames: int, margin: int) -> tuple[int, int]:
    """First and last picture (counted from 1) that may be a clip's centre.

    The margin on both sides shrinks for clips too short for it.
    """
    margin = min(margin, (num_frames - 1) // 2)
    return margin + 1, num_frames - margin


def crop_audio(
    audio: Int16[np.ndarray, " L"] | StoredArray, centre_samples: int, num_samples: int
) -> Int16[np.ndarray, " n"]:
    """`num_samples` around a centre: short audio is tiled, outside is silence, the last sample is always 0."""
    if len(audio) < num_samples:
        audio = np.tile(audio[:], num_samples // len(audio) + 1)
    half = num_samples // 2
    start, end = max(0, centre_samples - half), min(len(audio), centre_samples + half)
    crop = np.zeros(num_samples, np.int16)
    crop[half - (centre_samples - start) : half + (end - centre_samples)] = audio[start:end]
    return crop


def centre_samples(centre: int, sample_rate_hz: int) -> int:
    """Time of the middle of a picture (counted from 1), in samples."""
    return int((centre - 0.5) / FRAMES_PER_SECOND * sample_rate_hz)


def pictures_around(centre: int, num_frames: int, count: int) -> Int16[np.ndarray, " R"]:
    """Indices (from 0) of the `count` pictures around a centre (from 1), the outermost repeated at the ends."""
    first = centre - 1 - count // 2
    return np.array([min(max(index, 0), num_frames - 1) for index in range(first, first + count)], np.int16)


def example_start(start: int, length: int, num_samples: int, rng: np.random.Generator | None) -> int:
    """Where in a clip another segment begins than the one from `start` on: at random, or as far as it can be.

    The two share samples only where the clip is too short for both.
    """
    last = max(0, length - num_samples)
    before, after = start - num_samples, start + num_samples  # the latest start, and the earliest
    room_before, room_after = max(0, before + 1), max(0, last - after + 1)
    if rng is None or room_before + room_after == 0:
        return 0 if start > last - start else last
    place = int(rng.integers(room_before + room_after))
    return place if place < room_before else after + place - room_before


QueryOf = Callable[[Record | StoredRecord, np.ndarray], np.ndarray]  # of a record and the pictures around a centre


@dataclass(frozen=True)
class ClipReader:
    """Record -> one source of a mixture, as a dict of arrays with the names of `Batch`.

    With `frames` it gives pictures in place of a query, with `examples` another segment of the sound; with none of
    these, sound alone.
    """

    data: DataConfig
    spectrogram: SpectrogramConfig
    query: QueryOf | None
    frames: bool = False
    examples: bool = False

    def __call__(
        self, record: Record | StoredRecord, rng: np.random.Generator | None, num_frames: int | None = None
    ) -> dict[str, Any]:
        """Cuts a clip: at a random centre and gain from `rng`, or without it in the middle with gain 1.

        Args:
            num_frames: where the middle is sought, in place of the record's own number of pictures.
        """
        num_stored = self._num_frames(record)
        num_frames = num_frames or num_stored
        low, high = centre_range(num_frames, self.data.frame_margin)
        centre = max(1, num_frames // 2) if rng is None else int(rng.integers(low, high, endpoint=True))
        gain = 1.0 if rng is None else self._gain(rng)
        middle = centre_samples(centre, self.spectrogram.sample_rate_hz)
        sound = crop_audio(record.audio, middle, self.spectrogram.num_samples)
        clip: dict[str, Any] = {"sources": sound, "gain": np.float32(gain)}
        if self.examples:
            return clip | {"examples": self._example(record, middle, rng)}
        nearby = pictures_around(centre, num_stored, self.data.frames_per_clip)
        if self.frames:
            if not record.frames:
                raise InputError(f"{record.id} has no stored pictures; train with --config.query.source=embeddings.")
            return clip | {"frames": np.stack([self._decode(record, int(number)) for number in nearby])}
        return clip if self.query is None else clip | {"query": self.query(record, nearby)}

    def _example(self, record: Record | StoredRecord, middle: int, rng: np.random.Generator | None) -> np.ndarray:
        size = self.spectrogram.num_samples
        start = example_start(max(0, middle - size // 2), len(record.audio), size, rng)
        return crop_audio(record.audio, start + size // 2, size)

    def _gain(self, rng: np.random.Generator) -> float:
        least, most = self.data.gain_min, self.data.gain_max
        if self.data.gain_law == "linear":
            return rng.uniform(least, most)
        return float(np.exp(rng.uniform(np.log(least), np.log(most))))

    def _decode(self, record: Record | StoredRecord, number: int) -> UInt8[np.ndarray, "H W 3"]:
        try:
            return decode_frame(record.frames[number])
        except CorruptRecordError as error:
            message = f"{record.id}, picture {number + 1}: {error} Prepare the records again."
            raise CorruptRecordError(message, error.reason) from error

    def _num_frames(self, record: Record | StoredRecord) -> int:
        seconds = len(record.audio) * FRAMES_PER_SECOND // self.spectrogram.sample_rate_hz
        return record.num_frames or max(1, seconds)
