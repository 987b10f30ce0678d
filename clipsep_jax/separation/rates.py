"""A stream of stems at the sample rate of the sound: the model masks what it knows, and the bands above are added."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from clipsep_jax.separation.stream import MaskStream, Stems

RESAMPLING_SECONDS = 0.1  # at most, that resampling down and up holds back
Above = Literal["keep", "mute", "scale"]


class Resampler:
    """Resamples channels block by block; both ends keep their place."""

    def __init__(self, from_hz: int, to_hz: int):
        self._from_hz, self._to_hz = from_hz, to_hz
        self._stream: Any = None

    def __call__(self, samples: Float32[np.ndarray, "*b L"], *, last: bool = False) -> Float32[np.ndarray, "*b M"]:
        """What is complete by the next samples."""
        if self._from_hz == self._to_hz:
            return samples
        import soxr

        rows = samples.reshape(math.prod(samples.shape[:-1]), samples.shape[-1])
        if self._stream is None:
            self._stream = soxr.ResampleStream(self._from_hz, self._to_hz, len(rows), dtype="float32", quality="HQ")
        found = self._stream.resample_chunk(np.ascontiguousarray(rows.T), last=last)
        return np.ascontiguousarray(found.reshape(-1, len(rows)).T).reshape(*samples.shape[:-1], len(found))


class Queue:
    """Samples that wait, of which any number may be taken from the front."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []

    @property
    def length(self) -> int:
        return sum(block.shape[-1] for block in self.blocks)

    def add(self, samples: Float32[np.ndarray, "*b L"]) -> None:
        self.blocks.append(samples)

    def take(self, length: int) -> Float32[np.ndarray, "*b M"]:
        whole = self.blocks[0] if len(self.blocks) == 1 else np.concatenate(self.blocks, axis=-1)
        self.blocks = [whole[..., length:]]
        return whole[..., :length]

    def fill(self, length: int) -> None:
        """Adds zeros up to a length."""
        missing = length - self.length
        if self.blocks and missing > 0:
            self.blocks.append(np.zeros((*self.blocks[0].shape[:-1], missing), np.float32))


@dataclass(frozen=True)
class Block:
    """A further block of all stems, of the mixture that they are made of, and presence in frames that are new."""

    stems: Float32[np.ndarray, "N C L"]
    mixture: Float32[np.ndarray, "C L"]
    presence: Float32[np.ndarray, "N T"]
    is_last: bool = False


class RateStream:
    """Separates a sound at any rate by a stream at the model's rate.

    What the model knows is the sound resampled to the model's rate and back. What it does not know, the difference,
    goes into each stem as it is ("keep"), not at all ("mute"), or by the gain of the stem's highest bins ("scale").
    """

    def __init__(self, stream: MaskStream, rate_hz: int, model_hz: int, hop_samples: int, above: Above):
        self._stream, self._above = stream, "mute" if rate_hz == model_hz else above
        self._rate_hz, self._model_hz = rate_hz, model_hz
        self._frame_samples = hop_samples * rate_hz / model_hz
        self._start()

    def _start(self) -> None:
        self._down = Resampler(self._rate_hz, self._model_hz)
        self._up_known = Resampler(self._model_hz, self._rate_hz)
        self._up_stems = Resampler(self._model_hz, self._rate_hz)
        self._mixture, self._known, self._stems = Queue(), Queue(), Queue()
        self._gains: list[np.ndarray] = []  # of frames from `_first_gain` on
        self._first_gain = 0
        self._num_done = 0
        self._num_known = 0  # at the model's rate

    @property
    def latency_samples(self) -> int:
        """The most samples beyond one that must be known before it is given out."""
        resampling = int(RESAMPLING_SECONDS * self._rate_hz) if self._rate_hz != self._model_hz else 0
        return -(-self._stream.latency_samples * self._rate_hz // self._model_hz) + resampling

    def reset(self) -> None:
        """Forgets the sound so far."""
        self._stream.reset()
        self._start()

    def push(self, samples: Float32[np.ndarray, "C L"]) -> Iterator[Block]:
        """Takes the next samples, and gives what is complete by them."""
        self._mixture.add(samples)
        known = self._down(samples)
        self._num_known += known.shape[-1]
        if self._above != "mute":
            self._known.add(self._up_known(known))
        for stems in self._stream.push(known):
            yield self._add(stems)

    def finish(self) -> Iterator[Block]:
        """Gives the rest, and forgets the sound."""
        if not self._mixture.blocks:
            return
        channels = len(self._mixture.blocks[0])
        known = self._down(np.zeros((channels, 0), np.float32), last=True)
        if self._above != "mute":
            self._known.add(self._up_known(known, last=True))
        if not self._num_known + known.shape[-1]:  # of a sample or two at a high rate
            known = np.zeros((channels, 1), np.float32)
        for stems in (*self._stream.push(known), *self._stream.finish()):
            yield self._add(stems)
        self._stems.add(self._up_stems(stems.sounds[..., :0], last=True))
        for queue in (self._stems, self._known):
            queue.fill(self._mixture.length)  # lengths are rounded
        yield replace(self._complete(self._mixture.length, stems.presence[:, :0]), is_last=True)
        self._start()

    def _add(self, stems: Stems) -> Block:
        self._stems.add(self._up_stems(stems.sounds))
        if self._above != "mute":
            self._gains.append(stems.gains if self._above == "scale" else stems.gates)
        queues = (self._mixture, self._stems) if self._above == "mute" else (self._mixture, self._stems, self._known)
        return self._complete(min(queue.length for queue in queues), stems.presence)

    def _complete(self, length: int, presence: Float32[np.ndarray, "N T"]) -> Block:
        mixture, stems = self._mixture.take(length), self._stems.take(length)
        if self._above != "mute":
            unknown = mixture - self._known.take(length)
            stems = stems + self._gain(length)[:, None] * unknown
        self._num_done += length
        return Block(stems, mixture, presence)

    def _gain(self, length: int) -> Float32[np.ndarray, "N L"]:
        """Of each stem's highest bins, for the next samples."""
        gains = np.concatenate(self._gains, axis=1)
        places = (self._num_done + np.arange(length)) / self._frame_samples - self._first_gain
        found = np.stack([np.interp(places, np.arange(gains.shape[1]), row) for row in gains])
        passed = max(0, int((self._num_done + length) / self._frame_samples) - self._first_gain)
        self._gains, self._first_gain = [gains[:, passed:]], self._first_gain + passed
        return found.astype(np.float32)
