"""Separates files into files."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from clipsep_jax.config import Config
from clipsep_jax.data_prep.decode.sound_blocks import SoundBlocks
from clipsep_jax.data_prep.sources.videos import VIDEO_SUFFIXES
from clipsep_jax.errors import InputError
from clipsep_jax.files import staged_folder
from clipsep_jax.queries.base import Query
from clipsep_jax.separation.ahead import ahead
from clipsep_jax.separation.files import Recording, output_paths
from clipsep_jax.separation.options import CHUNKS_AT_ONCE, DEFAULT_OPTIONS, Options
from clipsep_jax.separation.overview import Overview
from clipsep_jax.separation.presence import Presence
from clipsep_jax.separation.rates import Resampler
from clipsep_jax.separation.remux import check_pictures, remux, video_suffix
from clipsep_jax.separation.separation import Separation
from clipsep_jax.separation.stem_files import WAV, StemFiles, StemFormat
from clipsep_jax.separation.targets import Target
from clipsep_jax.sound_files import open_sound

MOST_BYTES_AHEAD = 2**23  # of decoded sound

LEAST_PEAK = 1e-9  # of a stem that is not silent
_LEAST_BYTES_A_SECOND = 500  # of files that do not say how long they last

Progress = Callable[[float, float | None], None]  # seconds of sound that are done, and all, if known


@runtime_checkable
class Separates(Protocol):
    """What a job needs of a `Separator`, whose docstrings say what these do."""

    config: Config

    @property
    def presence(self) -> Presence | None: ...

    def stream(
        self,
        blocks: Iterable[Float32[np.ndarray, "*C L"]],
        queries: Sequence[Query | Target],
        *,
        rate: int | None = None,
        options: Options = DEFAULT_OPTIONS,
        chunks_at_once: int = 1,
    ) -> Iterator[Separation]: ...


@dataclass(frozen=True)
class Job:
    """What is made of every recording.

    Attributes:
        targets: what is pulled out; empty for a model of learned queries.
        out: the folder of the files.
        options: how sounds are separated.
        form: of the files.
        rate: of the files, in Hz; None for that of each recording.
        residual: whether what is left is written too.
        mixture: whether the recording itself is written too, as loud as its stems.
        remux: whether the stems of a video are put under its pictures, and written as videos.
        spectrogram: whether a picture of the mixture, the masks and the results is drawn.
        max_seconds: a longer recording is refused.
    """

    targets: tuple[Target, ...]
    out: Path
    options: Options = DEFAULT_OPTIONS
    form: StemFormat = WAV
    rate: int | None = None
    residual: bool = False
    mixture: bool = False
    remux: bool = False
    spectrogram: bool = False
    max_seconds: int = 12 * 60 * 60

    def titles(self, separator: Separates) -> list[str]:
        """Of the files that a recording gives."""
        model = separator.config.model
        titles = [target.name for target in self.targets]
        titles += [f"source {n + 1}" for n in range(model.num_learned_queries)]
        titles += [f"noise {n + 1}" for n in range(model.num_noise_heads if self.options.noise else 0)]
        return [*titles, *(["residual"] if self.residual else []), *(["mixture"] if self.mixture else [])]

    def paths(self, separator: Separates, recording: Recording) -> list[Path]:
        """The files that a recording gives."""
        is_video = self.remux and recording.path.suffix.lower() in VIDEO_SUFFIXES
        suffix = video_suffix(recording.path) if is_video else self.form.name
        return output_paths(self.out, recording.name, self.titles(separator), suffix)

    def picture(self, recording: Recording) -> Path | None:
        """The picture of a recording, if one is drawn."""
        return output_paths(self.out, recording.name, ["spectrogram"], "png")[0] if self.spectrogram else None


@dataclass(frozen=True)
class Separated:
    """What was made of a recording.

    Attributes:
        recording: the file.
        paths: of the stems, in the order of the targets, then of noise masks, the residual and the mixture.
        seconds: how long the recording lasts.
        rate_hz, num_channels: of the stems.
        gain: of all files, below 1 where they were made quieter together.
        as_float: files that got float bits, as they were too loud for others.
        presence: how likely each target is there, second by second; ones where the model is not calibrated.
        silent: the files that are silent because their sounds are not likely to be there.
        spectrogram: the picture, if one was asked for.
        took_seconds: how long the work took.
    """

    recording: Path
    paths: tuple[Path, ...]
    seconds: float
    rate_hz: int
    num_channels: int
    gain: float
    as_float: tuple[Path, ...]
    presence: tuple[tuple[float, ...], ...]
    silent: tuple[Path, ...]
    spectrogram: Path | None
    took_seconds: float


def separate_file(separator: Separates, recording: Recording, job: Job, progress: Progress | None = None) -> Separated:
    """Separates one recording into files, which appear once all are complete.

    Raises:
        InputError: the recording cannot be read, or the format of the files does not suit it.
        OSError: a file cannot be written.
    """
    start = time.perf_counter()
    paths = job.paths(separator, recording)
    with open_sound(recording.path, job.max_seconds) as sound:
        rate, channels = job.rate or sound.rate_hz, sound.num_channels
        for folder in {path.parent for path in paths}:
            folder.mkdir(parents=True, exist_ok=True)
        blocks = ahead(_at_rate(sound, rate), max(2, MOST_BYTES_AHEAD // (4 * channels * rate)))
        longest = sound.seconds or min(job.max_seconds, recording.path.stat().st_size / _LEAST_BYTES_A_SECOND)
        # The thread must have ended before the recording is closed.
        with closing(blocks), _stem_files(recording, paths, rate, channels, job, longest) as files:
            done, seconds, loudest = 0, [], 0.0
            overview = Overview(rate) if job.spectrogram else None
            for part in separator.stream(
                blocks, job.targets, rate=rate, options=job.options, chunks_at_once=CHUNKS_AT_ONCE
            ):
                mixture = part.residual + part.stems.sum(axis=0)
                more = [*([part.residual] if job.residual else []), *([mixture] if job.mixture else [])]
                files.write([*part.stems, *more])
                loudest = max(loudest, float(np.abs(mixture).max(initial=0.0)))
                if overview:
                    overview.add(mixture, part.stems)
                done += part.residual.shape[-1]
                seconds.append(part.presence)
                if progress:
                    progress(done / rate, sound.seconds)
            if not seconds:
                raise InputError(f"{recording.path} holds less than one sample at {rate} Hz; leave out --rate.")
            files.finish()
    picture = job.picture(recording)
    if overview and picture:
        overview.draw(picture, job.titles(separator)[: len(seconds[0])])
    presence = np.concatenate(seconds, axis=1)
    can_silence = separator.presence is not None and not job.options.always
    silent = [
        path for path, peak in zip(paths, files.peaks, strict=True) if can_silence and peak < LEAST_PEAK < loudest
    ]
    return Separated(
        recording=recording.path,
        paths=tuple(paths),
        seconds=done / rate,
        rate_hz=rate,
        num_channels=channels,
        gain=files.gain,
        as_float=files.as_float,
        presence=tuple(tuple(round(float(value), 3) for value in row) for row in presence),
        silent=tuple(silent),
        spectrogram=picture if picture and picture.is_file() else None,
        took_seconds=time.perf_counter() - start,
    )


@contextmanager
def _stem_files(
    recording: Recording, paths: Sequence[Path], rate_hz: int, num_channels: int, job: Job, seconds: float
) -> Iterator[StemFiles]:
    """The files of the stems; those of videos get their pictures once the sounds are complete."""
    if all(path.suffix == f".{job.form.name}" for path in paths):
        with StemFiles(paths, rate_hz, num_channels, job.form, seconds) as files:
            yield files
        return
    StemFormat("m4a").check(rate_hz, num_channels)
    check_pictures(recording.path)
    with staged_folder(paths[0].parent) as scratch:
        videos, sounds = [scratch / path.name for path in paths], [scratch / f"{n}.wav" for n in range(len(paths))]
        with StemFiles(sounds, rate_hz, num_channels, StemFormat(bits="24"), seconds) as files:
            yield files
        for video, sound in zip(videos, sounds, strict=True):
            remux(recording.path, sound, video)
            sound.unlink()


def _at_rate(sound: SoundBlocks, rate_hz: int) -> Iterator[Float32[np.ndarray, "C L"]]:
    resampler = Resampler(sound.rate_hz, rate_hz)
    for block in sound:
        yield resampler(block)
    if rate_hz != sound.rate_hz:
        yield resampler(np.zeros((sound.num_channels, 0), np.float32), last=True)
