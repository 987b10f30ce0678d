"""Puts a separated sound under the untouched pictures of its video."""

import errno
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from clipsep_jax.data_prep.decode.limits import VIDEO_FORMATS
from clipsep_jax.data_prep.decode.media import QuietFile, open_container
from clipsep_jax.errors import InputError

_BIT_RATE = 128_000  # of a channel
_BLOCK_SAMPLES = 1_024
_MP4_SUFFIXES = {".mp4", ".m4v", ".mov"}


def video_suffix(path: Path) -> str:
    """The suffix, without its dot, of a video with another sound: of the same kind for MP4, else that of Matroska."""
    suffix = path.suffix.lower()
    return suffix[1:] if suffix in _MP4_SUFFIXES else "mkv"


def check_pictures(path: Path) -> None:
    """Refuse a file without moving pictures.

    Raises:
        InputError: it has none.
    """
    import av

    with QuietFile(path.open("rb", buffering=0)) as file:
        try:
            with open_container(file, VIDEO_FORMATS) as container:
                has_some = _pictures(container) is not None
        except (av.FFmpegError, ValueError):  # a sound, whatever its name
            has_some = False
    if not has_some:
        raise InputError(f"{path} has no pictures; leave out --remux.")


def _pictures(container: Any) -> Any:
    from av.stream import Disposition

    return next((s for s in container.streams.video if not s.disposition & Disposition.attached_pic), None)


def remux(video: Path, sound: Path, out: Path) -> None:
    """Write the packets of a video's pictures as they are, and a sound file, which begins when the video does, as AAC.

    Raises:
        InputError: the pictures cannot be copied.
    """
    import av
    import soundfile

    with (
        QuietFile(video.open("rb", buffering=0)) as file,
        open_container(file, VIDEO_FORMATS) as source,
        soundfile.SoundFile(sound) as samples,
        out.open("wb") as written,
    ):
        name = "mp4" if out.suffix.lower() in _MP4_SUFFIXES else "matroska"
        try:
            with av.open(written, "w", format=name) as target:
                pictures = _pictures(source)
                copied = target.add_stream_from_template(pictures)
                layout = "mono" if samples.channels == 1 else "stereo"
                coded = target.add_stream("aac", rate=samples.samplerate, layout=layout)
                coded.bit_rate = _BIT_RATE * samples.channels
                sounds = _encoded(samples, coded, Fraction(source.start_time or 0, 1_000_000))
                for packet in _by_time(_copied(source, pictures, copied), sounds):
                    target.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(error.errno, error.strerror, str(out)) from error
            raise InputError(f"The pictures of {video} cannot be copied ({error}); leave out --remux.") from error


def _copied(source: Any, pictures: Any, copied: Any) -> Iterator[Any]:
    for packet in source.demux(pictures):
        if packet.dts is not None:  # the last one, which ends decoding, holds nothing
            packet.stream = copied
            yield packet


def _encoded(samples: Any, coded: Any, start: Fraction) -> Iterator[Any]:
    import av

    layout, rate = coded.layout.name, samples.samplerate
    done = round(start * rate)
    for block in samples.blocks(_BLOCK_SAMPLES, dtype="float32", always_2d=True):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block.T), format="fltp", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), done
        done += len(block)
        yield from coded.encode(frame)
    yield from coded.encode(None)


def _by_time(first: Iterator[Any], second: Iterator[Any]) -> Iterator[Any]:
    """Packets of two streams in the order of their times."""
    waiting = [next(first, None), next(second, None)]
    streams = (first, second)
    while any(packet is not None for packet in waiting):
        times = [float("inf") if packet is None else float(packet.dts * packet.time_base) for packet in waiting]
        number = int(np.argmin(times))
        yield waiting[number]
        waiting[number] = next(streams[number], None)
