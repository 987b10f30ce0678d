"""Decoding of media files: the sound at 16 kHz, and one picture per second.

Only an allow-list of formats and codecs is opened, and never another file or address. The result depends on the
content of the file alone.
"""

import errno
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from jaxtyping import Float32

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.data_prep.decode import limits
from clipsep_jax.data_prep.decode.limits import MAX_SECONDS, check_duration
from clipsep_jax.data_prep.decode.pictures import Pictures
from clipsep_jax.data_prep.decode.refusal import Refused, refuse, undecodable
from clipsep_jax.data_prep.decode.sound import PREROLL_SECONDS, Sound, check_finite, time_of
from clipsep_jax.data_prep.sources.inputs import Segment

_MAX_MISSING_SECONDS = 0.5  # a file may end so much before its declared end
_MP3_TAGS = (b"ID3", b"TAG", b"APETAGEX")
_TIME_BASE = 1_000_000  # FFmpeg's, of whole files
_UNKNOWN_WAV_BYTES = 2**31 - 2**16  # programs that write WAV to a pipe state a size that no file has


@dataclass(frozen=True, eq=False)
class Decoded:
    """The content of a file or of a segment of it; time 0 is the start of its earliest stream, or of the segment.

    Attributes:
        audio: mono at 16 kHz, finite.
        frames: JPEG pictures, see `Record`; empty if not requested.
        still_picture: whether all decoded pictures are the same.
        cancels: whether the channels cancel each other out in `audio`.
    """

    audio: Float32[np.ndarray, " L"]
    frames: tuple[bytes, ...]
    still_picture: bool
    cancels: bool


def decode(path: Path, *, pictures: bool, segment: Segment | None = None, max_seconds: int = MAX_SECONDS) -> Decoded:
    """Decode the first audio stream of a file and, with `pictures`, its first video stream, in one pass.

    Raises:
        Refused: the file is not usable, or cannot be read or decoded.
    """
    import av

    try:
        limits.check_file(path)
        if segment:
            # If seeking fails, reading from the start may work.
            with suppress(_SoughtInVainError, Refused, av.FFmpegError):
                return _decode(path, pictures, segment, max_seconds, seek=True)
        return _decode(path, pictures, segment, max_seconds, seek=False)
    except (av.FFmpegError, OSError, ValueError, OverflowError, MemoryError) as error:
        raise undecodable(error) from error


def is_wav_of_unknown_size(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    place = head.find(b"data")
    if not head.startswith(b"RIFF") or head[8:12] != b"WAVE" or place < 0:
        return False
    num_bytes = int.from_bytes(head[place + 4 : place + 8], "little")
    return num_bytes == 0 or num_bytes > _UNKNOWN_WAV_BYTES


def open_container(file: BinaryIO, formats: Sequence[str]) -> Any:
    """Open a file that is already open, in one of the allowed formats and without access to any other file."""
    import av

    def refuse_other_files(url: str, flags: int, options: dict[str, str]) -> NoReturn:
        raise PermissionError("it refers to another file")

    lists = {"format_whitelist": ",".join(formats), "codec_whitelist": ",".join(sorted(limits.CODECS))}
    return av.open(
        file,
        mode="r",
        metadata_errors="replace",
        options={"max_pixels": str(limits.MAX_PIXELS), "threads": "1"},
        container_options=lists | {"enable_drefs": "0"},
        io_open=refuse_other_files,
    )


class QuietFile(io.BufferedReader):
    """A file whose failed seeking is told to FFmpeg by a number; PyAV prints the traceback of an error."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError):
            return -errno.EINVAL


class _SoughtInVainError(Exception):
    """Seeking went past the start of the segment, or failed."""


def _decode(path: Path, pictures: bool, segment: Segment | None, max_seconds: int, seek: bool) -> Decoded:
    ends_anywhere = is_wav_of_unknown_size(path)
    with (
        QuietFile(path.open("rb", buffering=0)) as file,
        open_container(file, limits.VIDEO_FORMATS if pictures else limits.SOUND_FORMATS) as container,
    ):
        video, sound = streams_of(container, pictures)
        streams = [video, sound] if video else [sound]
        for stream in streams:
            make_ready(stream)
        start, end = span_of(container, segment, max_seconds)
        if seek:
            _seek(container, start)
        seen, heard = Pictures(start), Sound(start, max_seconds)
        passed: set[int] = set()  # streams that have reached the end of the segment
        for stream, frame in frames_of(container, streams, ends_anywhere):
            time = time_of(frame)
            if end is not None and time is not None and time > end + PREROLL_SECONDS:
                passed.add(stream.index)
                if len(passed) == len(streams):
                    break
            else:
                (seen if stream is video else heard).add(frame)
        if seek and (heard.begins_late or (video and seen.begins_late)):
            raise _SoughtInVainError
        audio = heard.finish()
        if not ends_anywhere:
            check_complete(container, sound, (start, end), len(audio) / SAMPLE_RATE_HZ, seen.end)
    if end is not None:
        audio = audio[: round((end - start) * SAMPLE_RATE_HZ)]
    check_finite(audio)
    seconds = min(len(audio) / SAMPLE_RATE_HZ, float(seen.end))
    return Decoded(audio, seen.finish(seconds) if video else (), seen.still, heard.cancels(audio))


def streams_of(container: Any, pictures: bool) -> tuple[Any, Any]:
    """The first video stream, None without `pictures`, and the first audio stream."""
    from av.stream import Disposition

    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    sounds = container.streams.audio
    if pictures and not videos:
        refuse("no_video", "it has no video stream")
    if not sounds:
        refuse("no_audio", "it has no audio stream")
    return videos[0] if pictures else None, sounds[0]


def span_of(container: Any, segment: Segment | None, max_seconds: int) -> tuple[Fraction, Fraction | None]:
    """Start and end of the decoded part, in the container's time; None is the container's end."""
    start = Fraction(container.start_time or 0, _TIME_BASE)
    seconds = container.duration / _TIME_BASE if container.duration else None
    if segment is None or (seconds is not None and seconds <= segment.seconds + _MAX_MISSING_SECONDS):
        check_duration(seconds or 0.0, max_seconds)
        return start, None
    check_duration(seconds or 0.0, limits.MAX_FILE_SECONDS)
    if seconds is not None and seconds <= segment.start_seconds:
        refuse("too_short", f"it ends after {seconds:.2f} s, before its clip begins at {segment.start_seconds:g} s")
    start += Fraction(segment.start_seconds)
    return start, start + Fraction(segment.seconds)


def _seek(container: Any, start: Fraction) -> None:
    import av

    try:
        container.seek(int((start - PREROLL_SECONDS) * _TIME_BASE), backward=True)
    except av.FFmpegError as error:
        raise _SoughtInVainError from error


def frames_of(container: Any, streams: Sequence[Any], ends_anywhere: bool) -> Iterator[tuple[Any, Any]]:
    """Give each decoded frame with its stream."""
    import av

    for packet in container.demux(*streams):
        if packet.is_corrupt and not ends_anywhere:
            refuse("undecodable", "it ends in the middle, or is damaged")
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            if not bytes(packet).startswith(_MP3_TAGS):  # which lie between recordings that were put together
                raise
            continue
        for frame in frames:
            yield packet.stream, frame


def make_ready(stream: Any) -> None:
    """Check a stream before it is decoded, and limit its decoder."""
    codec = stream.codec_context
    if codec is None:
        refuse("undecodable", f"its {stream.type} codec is unknown")
    if codec.codec.name not in limits.CODECS:
        refuse("undecodable", f"its {stream.type} codec {codec.codec.name} is not supported")
    codec.thread_count = 1  # many clips are read in parallel
    codec.options = {"max_pixels": str(limits.MAX_PIXELS)}
    if stream.type == "video":
        limits.check_picture_size(codec.width, codec.height)


def check_complete(
    container: Any, sound: Any, span: tuple[Fraction, Fraction | None], seconds: float, picture_end: Fraction
) -> None:
    """Refuse a file that ends before its declared end, or before the span's if that is earlier."""
    start, end = span
    name, whole = container.format.name, (container.duration or 0) / _TIME_BASE
    before = float(start) - (container.start_time or 0) / _TIME_BASE
    if any(known in name for known in ("mp4", "wav", "w64", "flac", "aiff", "avi", "au", "caf")) and sound.duration:
        declared = float(sound.duration * sound.time_base)
    elif "matroska" in name and whole and (picture_end or not container.streams.video):
        declared, seconds = whole, max(seconds, float(picture_end))
    else:
        return
    if end is not None:
        declared = min(declared, before + float(end - start))
    if before + seconds < declared - _MAX_MISSING_SECONDS:
        refuse("undecodable", f"it ends after {before + seconds:.2f} s of {declared:.2f} s")
