"""The sound of a media file: decoded audio as mono at 16 kHz, and the checks that it must pass."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.data_prep.decode.limits import check_duration, check_sound_format
from clipsep_jax.data_prep.decode.refusal import refuse
from clipsep_jax.data_prep.ledger import dbfs

MIN_SECONDS = 1
SILENCE_DBFS = -60.0
PREROLL_SECONDS = 1  # decoded before and after a segment: decoders must settle, and streams are interleaved


class Sound:
    """Gathers decoded audio as mono float32 at 16 kHz whose sample 0 is at `start`."""

    def __init__(self, start: Fraction, max_seconds: int) -> None:
        self._start = start
        self._max_seconds = max_seconds
        self._offset_samples: int | None = None
        self._seconds = 0.0
        self._chunks: list[np.ndarray] = []
        self._loudest = 0.0  # sample of any channel
        self._format: tuple | None = None  # of the frames that the resampler takes
        self._resampler: Any = None

    def add(self, frame: Any) -> None:
        check_sound_format(frame.sample_rate, frame.layout.nb_channels)
        seconds = Fraction(frame.samples, frame.sample_rate)
        if self._offset_samples is None:
            time = time_of(frame)
            offset = Fraction(0) if time is None else time - self._start
            if offset + seconds < -PREROLL_SECONDS:
                return
            self._offset_samples = round(offset * SAMPLE_RATE_HZ)
            self._seconds = float(offset)
        self._seconds += float(seconds)
        check_duration(self._seconds, self._max_seconds)  # before resampling, which may multiply the samples
        self._gather(frame)

    def _gather(self, frame: Any) -> None:
        from av import AudioResampler

        format = (frame.sample_rate, frame.format.name, frame.layout.name)
        if format != self._format:  # at the beginning, and where recordings were put together
            self._flush()
            self._format, self._resampler = format, AudioResampler(format="flt", rate=SAMPLE_RATE_HZ)
        self._keep(self._resampler.resample(frame))

    def _flush(self) -> None:
        if self._resampler is not None:
            self._keep(self._resampler.resample(None))

    def _keep(self, frames: Sequence[Any]) -> None:
        for frame in frames:
            channels = samples_of(frame)
            self._loudest = max(self._loudest, float(np.abs(channels).max(initial=0.0)))
            self._chunks.append(channels.mean(axis=0, dtype=np.float32))

    @property
    def begins_late(self) -> bool:
        return self._offset_samples is None or self._offset_samples > 0

    def finish(self) -> Float32[np.ndarray, " L"]:
        if self._offset_samples is None:
            refuse("undecodable", "no audio could be decoded")
        self._flush()
        audio = np.concatenate([np.zeros(max(0, self._offset_samples), np.float32), *self._chunks])
        return audio[max(0, -self._offset_samples) :]

    def cancels(self, audio: Float32[np.ndarray, " L"]) -> bool:
        """Whether the channels of what was gathered cancel each other out."""
        return channels_cancel(self._loudest, audio)


def samples_of(frame: Any) -> Float32[np.ndarray, "C L"]:
    """The samples of a frame of format "flt"; PyAV counts the planes of planar frames beyond their end."""
    return np.ascontiguousarray(frame.to_ndarray().reshape(frame.samples, -1).T)


def channels_cancel(loudest: float, audio: Float32[np.ndarray, " L"]) -> bool:
    """Whether a mean of channels is silent, or nearly so, where one of them is as loud as `loudest`."""
    peak = float(np.abs(audio).max(initial=0.0))
    return dbfs(32768 * loudest) > SILENCE_DBFS and peak < loudest / 1_000


def check_finite(audio: Float32[np.ndarray, "*C L"]) -> None:
    """Raise `Refused` if a sample is not a finite number."""
    if not np.isfinite(audio).all():
        refuse("undecodable", "its audio holds NaN or infinity")


def checked_audio(audio: Float32[np.ndarray, " L"], *, cancels: bool = False) -> Int16[np.ndarray, " L"]:
    """Convert to 16 bits; raise `Refused` if the audio is too short or silent, such as where its channels cancel."""
    if len(audio) < MIN_SECONDS * SAMPLE_RATE_HZ:
        refuse("too_short", f"{len(audio) / SAMPLE_RATE_HZ:.2f} s of audio, below {MIN_SECONDS} s")
    samples = np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)
    peak = dbfs(float(np.abs(samples.astype(np.int32)).max()))
    if peak < SILENCE_DBFS:
        why = ": its channels cancel each other out" if cancels else ""
        refuse("silent", f"its peak is {peak:.1f} dBFS, below {SILENCE_DBFS:.0f} dBFS{why}")
    return samples


def time_of(frame: Any) -> Fraction | None:
    """When a decoded frame is shown or heard, in seconds of the container's time; None if unknown."""
    return None if frame.pts is None or frame.time_base is None else Fraction(frame.pts) * frame.time_base
