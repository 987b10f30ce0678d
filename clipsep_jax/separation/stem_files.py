"""Writes the stems of one recording, block by block: all files or none, and none of them clipped."""

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from clipsep_jax.errors import InputError
from clipsep_jax.files import sync

Clip = Literal["scale", "float"]

_BLOCK_SAMPLES = 2**16
_MOST_WAV_BYTES = 2**32 - 2**20  # what the header of a WAV file can tell


@dataclass(frozen=True)
class _Kind:
    """A format of files: as libsndfile calls it, or None where PyAV writes it, and what it can hold."""

    name: str | None
    subtypes: dict[str, str]  # by bits
    most_channels: int
    rates_hz: frozenset[int] | None = None  # any, if None

    @property
    def is_lossy(self) -> bool:
        return "" in self.subtypes


_MPEG_RATES = frozenset({8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000})
_KINDS = {
    "wav": _Kind("WAV", {"16": "PCM_16", "24": "PCM_24", "float": "FLOAT"}, 64),
    "flac": _Kind("FLAC", {"16": "PCM_16", "24": "PCM_24"}, 8),
    "mp3": _Kind("MP3", {"": "MPEG_LAYER_III"}, 2, _MPEG_RATES),
    "ogg": _Kind("OGG", {"": "VORBIS"}, 8),
    "m4a": _Kind(None, {"": "aac"}, 2, _MPEG_RATES | {64_000, 88_200, 96_000}),
}


@dataclass(frozen=True)
class StemFormat:
    """How stems are written.

    Attributes:
        name: "wav", "flac", "mp3", "ogg" or "m4a", which is the suffix too.
        bits: "16", "24" or "float" of a sample, where the format has them.
        clip: what happens to stems above full scale, where samples have no "float" bits: all files of a recording are
            made quieter together ("scale"), or the file gets such bits ("float").
    """

    name: str = "wav"
    bits: str = "16"
    clip: Clip = "scale"

    def __post_init__(self) -> None:
        kind = _KINDS[self.name]
        if kind.is_lossy and self.bits != "16":
            raise InputError(f"{self.name} files have no number of bits; leave out --bits, or write wav.")
        if not kind.is_lossy and self.bits not in kind.subtypes:
            raise InputError(f"{self.name} files hold {' or '.join(kind.subtypes)} bits; for {self.bits}, write wav.")
        if self.clip == "float" and "float" not in kind.subtypes:
            raise InputError(f"{self.name} files do not hold floats; give another --clip, or write wav.")

    def check(self, rate_hz: int, num_channels: int) -> None:
        """Refuse a sound that the format cannot hold.

        Raises:
            InputError: it cannot.
        """
        kind = _KINDS[self.name]
        if num_channels > kind.most_channels:
            raise InputError(f"{self.name} files hold at most {kind.most_channels} channels here; write wav.")
        if kind.rates_hz and rate_hz not in kind.rates_hz:
            raise InputError(f"{self.name} files do not hold {rate_hz} Hz; write wav, or give another --rate.")


WAV = StemFormat()


class StemFiles:
    """The open files of one recording's stems; give it to `with`, write blocks, and `finish`.

    Attributes:
        gain: of all files, below 1 where they had to be made quieter; known once finished.
        as_float: the files that got float bits instead.
    """

    def __init__(
        self, paths: Sequence[Path], rate_hz: int, num_channels: int, form: StemFormat, seconds: float | None = None
    ):
        """Start to write.

        Args:
            paths: of the files; they appear once all are finished.
            seconds: at most, for formats that must know; None if unknown.

        Raises:
            InputError: the format cannot hold such sounds.
        """
        form.check(rate_hz, num_channels)
        self._form = form
        self._stems: list[_Stem] = []
        try:
            for path in paths:
                self._stems.append(_Stem(path, rate_hz, num_channels, form, seconds))
        except BaseException:
            self.__exit__()
            raise
        self.gain = 1.0
        self.as_float: tuple[Path, ...] = ()

    def __enter__(self) -> "StemFiles":
        return self

    def __exit__(self, *error: object) -> None:
        for stem in self._stems:
            stem.drop()

    def write(self, stems: Sequence[Float32[np.ndarray, "C L"]]) -> None:
        """Add the next samples of each file."""
        for stem, samples in zip(self._stems, stems, strict=True):
            stem.write(samples)

    @property
    def peaks(self) -> list[float]:
        """The loudest sample of each file, before any gain."""
        return [stem.peak for stem in self._stems]

    def finish(self) -> None:
        """Complete all files, and give them their names."""
        loudest = max(self.peaks)
        if self._form.clip == "scale" and self._form.bits != "float" and loudest > 1:
            self.gain = 1 / loudest
        self.as_float = tuple(stem.path for stem in self._stems if stem.complete(self.gain))
        for stem in self._stems:
            sync(stem.partial)
        for stem in self._stems:
            os.replace(stem.partial, stem.path)


class _Stem:
    """One file under way. It holds floats as soon as a sample is too loud for anything else."""

    def __init__(self, path: Path, rate_hz: int, num_channels: int, form: StemFormat, seconds: float | None):
        self.path, self.peak = path, 0.0
        self.partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
        self._kind, self._rate_hz, self._num_channels = _KINDS[form.name], rate_hz, num_channels
        self._bits, self._clip = "" if self._kind.is_lossy else form.bits, form.clip
        self._seconds = seconds
        self._is_direct = not self._kind.is_lossy  # whether what is written has the format that is wanted
        self._file = self._open(self._bits if self._is_direct else "float")

    def _open(self, bits: str) -> Any:
        import soundfile

        with _disk_errors(self.partial):
            if bits == "float":
                name, subtype, width = "WAV", "FLOAT", 4
            else:
                name, subtype, width = str(self._kind.name), self._kind.subtypes[bits], 3
            num_bytes = float("inf") if self._seconds is None else self._seconds * self._rate_hz * self._num_channels
            if name == "WAV" and num_bytes * width > _MOST_WAV_BYTES:
                name = "RF64"
            path = os.fsencode(self.partial)  # names need not be UTF-8
            return soundfile.SoundFile(path, "w", self._rate_hz, self._num_channels, subtype, format=name)

    def write(self, samples: Float32[np.ndarray, "C L"]) -> None:
        self.peak = max(self.peak, float(np.abs(samples).max(initial=0.0)))
        if self.peak > 1 and self._is_direct and self._bits != "float":
            self._rewrite("float", 1.0)
            self._is_direct = False
        with _disk_errors(self.path):
            self._file.write(samples.T)

    def complete(self, gain: float) -> bool:
        """Give the file its format, and say whether it holds floats because it is too loud for it."""
        stays_float = not self._is_direct and not self._kind.is_lossy and self._clip == "float"
        if gain != 1 or not (self._is_direct or stays_float):
            self._rewrite(self._bits, gain)
        with _disk_errors(self.path):
            self._file.close()
        return stays_float

    def drop(self) -> None:
        """Close the file; what was not completed is gone."""
        self._file.close()
        self.partial.unlink(missing_ok=True)

    def _rewrite(self, bits: str, gain: float) -> None:
        """Replace the file by one of other bits, times a gain."""
        import soundfile

        with _disk_errors(self.path):
            self._file.close()
            old = self.partial.with_suffix(".old.partial")
            os.replace(self.partial, old)
            try:
                with soundfile.SoundFile(os.fsencode(old)) as source:
                    blocks = (
                        block * np.float32(gain)
                        for block in source.blocks(_BLOCK_SAMPLES, dtype="float32", always_2d=True)
                    )
                    if self._kind.name is None and bits == "":
                        _write_aac(self.partial, blocks, self._rate_hz, self._num_channels)
                    else:
                        self._file = self._open(bits)
                        for block in blocks:
                            self._file.write(block)
            finally:
                old.unlink(missing_ok=True)


def _write_aac(path: Path, blocks: Iterator[Float32[np.ndarray, "L C"]], rate_hz: int, num_channels: int) -> None:
    import av

    layout = "mono" if num_channels == 1 else "stereo"
    with path.open("wb") as file, av.open(file, "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=rate_hz, layout=layout)
        stream.bit_rate = 96_000 * num_channels
        done = 0
        for block in blocks:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block.T), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate_hz, done, Fraction(1, rate_hz)
            done += len(block)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turns libsndfile's and FFmpeg's errors of writing into those of the operating system, with the file's name."""
    import av
    import soundfile

    try:
        yield
    except (soundfile.SoundFileError, av.FFmpegError) as error:
        number = errno.ENOSPC if "No space" in str(error) else errno.EIO
        raise OSError(number, str(error).rstrip("."), str(path)) from error
