"""What separation gives: stems and what is left, as a whole or as they come."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from clipsep_jax.errors import InputError
from clipsep_jax.separation.rates import Block, RateStream


@dataclass(frozen=True)
class Separation:
    """What separation gives, in the channels, at the rate and as long as what was given.

    Attributes:
        stems: one per target, then the noise masks' where they are asked for.
        residual: the input without the stems.
        presence: how likely each target is there in each second that is complete; ones where the model is not
            calibrated, and for noise masks.
    """

    stems: Float32[np.ndarray, "N *C L"]
    residual: Float32[np.ndarray, "*C L"]
    presence: Float32[np.ndarray, "N S"]


class SeparationStream:
    """Separates a sound that comes block by block: `push` gives what is complete by a block, `finish` the rest."""

    def __init__(self, stream: RateStream, rate_hz: int, frames_a_second: float, model: str):
        self._stream, self._model, self._frames_a_second = stream, model, frames_a_second
        self.latency_seconds: float = stream.latency_samples / rate_hz
        self._start()

    def _start(self) -> None:
        self._shape: tuple[int, ...] | None = None
        self._presence: np.ndarray | None = None  # of frames of seconds that are not complete
        self._num_seconds = 0
        self._num_frames = 0  # of seconds that are complete

    def push(self, samples: Float[np.ndarray, "*C L"]) -> Iterator[Separation]:
        """Takes the next samples, of one channel [L] or of several [C L].

        Raises:
            InputError: they are not finite, of another number of channels than before, or give stems that are not
                finite.
        """
        if samples.ndim not in (1, 2) or (self._shape is not None and samples.shape[:-1] != self._shape):
            raise InputError(
                f"A sound is [samples] or [channels, samples], the same for all blocks, not {list(samples.shape)}."
            )
        if not np.isfinite(samples).all():
            raise InputError("The recording holds values that are not finite; give another one.")
        self._shape = samples.shape[:-1]
        if samples.size:
            for block in self._stream.push(np.atleast_2d(samples).astype(np.float32)):
                yield self._separation(block)

    def finish(self) -> Iterator[Separation]:
        """Gives the rest; afterwards the stream is as new."""
        for block in self._stream.finish():
            yield self._separation(block)
        self._start()

    def reset(self) -> None:
        """Forgets the sound so far."""
        self._stream.reset()
        self._start()

    def _separation(self, block: Block) -> Separation:
        stems, mixture = block.stems, block.mixture
        if not np.isfinite(stems).all():
            raise InputError(f"{self._model} gives sounds that are not finite here; take another model.")
        if self._shape == ():
            stems, mixture = stems[:, 0], mixture[0]
        return Separation(stems, mixture - stems.sum(axis=0), self._seconds(block))

    def _seconds(self, block: Block) -> Float32[np.ndarray, "N S"]:
        """The mean presence of each further second; a last half of one counts as one."""
        frames = block.presence
        self._presence = frames if self._presence is None else np.concatenate([self._presence, frames], axis=1)
        means = []
        while True:
            end = round((self._num_seconds + 1) * self._frames_a_second) - self._num_frames
            missing = end - self._presence.shape[1]
            ends_here = block.is_last and self._presence.shape[1] and (missing < end / 2 or not self._num_seconds)
            if missing > 0 and not ends_here:
                break
            means.append(self._presence[:, :end].mean(axis=1))
            self._presence = self._presence[:, end:]
            self._num_seconds, self._num_frames = self._num_seconds + 1, self._num_frames + end
        return np.stack(means, axis=1) if means else frames[:, :0]
