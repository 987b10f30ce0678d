"""The sound of a media file in blocks, at its own rate and with all its channels, in memory that does not grow."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from clipsep_jax.data_prep.decode import limits
from clipsep_jax.data_prep.decode.media import (
    QuietFile,
    check_complete,
    frames_of,
    is_wav_of_unknown_size,
    make_ready,
    open_container,
    span_of,
    streams_of,
)
from clipsep_jax.data_prep.decode.refusal import refuse, undecodable
from clipsep_jax.data_prep.decode.sound import check_finite, samples_of, time_of

BLOCK_SECONDS = 1  # at least, but for the last block
MOST_FILLING_SECONDS = 0.2  # by which codecs lengthen a sound beyond what its file declares


class SoundBlocks:
    """An open file; give it to `with`, and iterate over it once.

    What can be read, and when time begins, is as for `media.decode`. Where recordings were put together, all get
    the rate and the channels of the first.

    Attributes:
        rate_hz, num_channels: of the blocks.
        seconds: that the file says it lasts; None where it does not say.
    """

    def __init__(self, path: Path, max_seconds: int):
        """Open a file.

        Raises:
            Refused: it is not usable.
        """
        self._max_seconds = max_seconds
        with _refusals(), ExitStack() as stack:
            limits.check_file(path, any_size=True)
            self._ends_anywhere = is_wav_of_unknown_size(path)
            file = stack.enter_context(QuietFile(path.open("rb", buffering=0)))
            self._container = stack.enter_context(open_container(file, limits.SOUND_FORMATS))
            _, self._stream = streams_of(self._container, pictures=False)
            make_ready(self._stream)
            self._is_vorbis = self._container.format.name == "ogg" and self._stream.codec_context.name == "vorbis"
            if self._is_vorbis:
                self._stream.codec_context.options = {"flags2": "+skip_manual"}
            self._start, _ = span_of(self._container, None, max_seconds)
            self._frames = (frame for _, frame in frames_of(self._container, [self._stream], self._ends_anywhere))
            self._first = next(self._frames, None)
            if self._is_vorbis:  # FFmpeg gives what comes before the first sample, and often another time for it
                self._first = next(self._frames, None)
            if self._first is None:
                refuse("undecodable", "no audio could be decoded")
            self.rate_hz, self.num_channels = self._first.sample_rate, self._first.layout.nb_channels
            limits.check_sound_format(self.rate_hz, self.num_channels)
            self.seconds = self._declared_seconds()
            self._num_late = 0  # zeros before sound that begins late
            self._open = stack.pop_all()

    def _declared_seconds(self) -> float | None:
        stream = self._stream
        if self._ends_anywhere or not (stream.duration or self._container.duration):
            return None
        return float(stream.duration * stream.time_base) if stream.duration else self._container.duration / 1e6

    def __enter__(self) -> "SoundBlocks":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[Float32[np.ndarray, "C L"]]:
        """The samples, from the container's start.

        Raises:
            Refused: the file cannot be decoded, ends too early, is too long, or holds values that are not finite.
        """
        waiting: list[np.ndarray] = []
        length = num_samples = 0
        held_back = int(MOST_FILLING_SECONDS * self.rate_hz)
        with _refusals():
            for samples in self._samples():
                num_samples += samples.shape[-1]
                limits.check_duration(num_samples / self.rate_hz, self._max_seconds)
                check_finite(samples)
                waiting.append(samples)
                length += samples.shape[-1]
                if length >= BLOCK_SECONDS * self.rate_hz + held_back:
                    joined = np.concatenate(waiting, axis=-1)
                    yield joined[:, :-held_back]
                    waiting, length = [joined[:, -held_back:]], held_back
            if not num_samples:
                refuse("no_audio", "it holds no samples")
            if not self._ends_anywhere:
                span = self._start, None
                check_complete(self._container, self._stream, span, num_samples / self.rate_hz, Fraction(0))
        yield np.concatenate(waiting, axis=-1)[:, : length - self._filling(num_samples)]

    def _filling(self, num_samples: int) -> int:
        """How many of the last samples are there only because codecs take blocks."""
        is_aac = "mp4" in self._container.format.name and self._stream.codec_context.name == "aac"
        if self.seconds is None or not (is_aac or self._is_vorbis):
            return 0
        more = num_samples - self._num_late - round(self.seconds * self.rate_hz)
        return more if 0 < more < int(MOST_FILLING_SECONDS * self.rate_hz) else 0

    def _samples(self) -> Iterator[np.ndarray]:
        """The samples frame by frame: zeros first where the sound begins late, and nothing from before the start."""
        time = time_of(self._first)
        missing = 0 if time is None or self._is_vorbis else round((time - self._start) * self.rate_hz)
        self._num_late = max(0, missing)
        while missing > 0:
            some = min(missing, self.rate_hz)
            yield np.zeros((self.num_channels, some), np.float32)
            missing -= some
        for samples in self._converted():
            passed = min(-missing, samples.shape[-1])
            missing += passed
            if passed < samples.shape[-1]:
                yield samples[:, passed:]

    def _converted(self) -> Iterator[np.ndarray]:
        """The samples of all frames as float32, at the rate and with the channels of the first."""
        from av import AudioResampler

        first: Any = self._first
        resampler: Any = None
        kept = None
        for frame in _after(first, self._frames):
            kind = frame.sample_rate, frame.format.name, frame.layout.name
            if kind != kept:  # at the beginning, and where recordings were put together
                yield from map(samples_of, resampler.resample(None) if resampler else [])
                limits.check_sound_format(frame.sample_rate, frame.layout.nb_channels)
                layout = None if frame.layout.name == first.layout.name else first.layout.name
                kept, resampler = kind, AudioResampler(format="flt", layout=layout, rate=self.rate_hz)
            yield from map(samples_of, resampler.resample(frame))
        yield from map(samples_of, resampler.resample(None) if resampler else [])


def _after(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others


@contextmanager
def _refusals() -> Iterator[None]:
    """Turns errors of decoding into refusals."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError, OverflowError, MemoryError) as error:
        raise undecodable(error) from error
