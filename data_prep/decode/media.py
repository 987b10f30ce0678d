"""Decoding of media files: what is refused, the sound at 16 kHz, and a picture a second.

Files are opened in an allow-list of formats and codecs, and never lead to another file or address. What a file gives
depends on its content alone.
"""

import math
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from jaxtyping import Float32, Int16
from PIL import Image

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.data.record import FRAME_SIZE, Record
from clipsep_jax.data_prep.ledger import Rejection, dbfs
from clipsep_jax.data_prep.sources.inputs import Segment
from clipsep_jax.errors import InputError

VIDEO_FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg")  # as FFmpeg calls them
SOUND_FORMATS = (*VIDEO_FORMATS, "wav", "w64", "flac", "mp3", "aiff", "aac", "au", "caf")
CODECS = frozenset({
    # of pictures
    "h264", "hevc", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video", "mpeg4",
    "msmpeg4v2", "msmpeg4", "h263", "flv", "mjpeg", "theora", "ffv1", "huffyuv", "prores", "dvvideo", "rawvideo",
    # of sound
    "aac", "aac_latm", "mp3", "mp3float", "mp2", "mp2float", "opus", "libopus", "vorbis", "libvorbis", "flac", "alac",
    "ac3", "eac3", "amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "adpcm_ms", "adpcm_ima_wav",
    "adpcm_ima_qt", "adpcm_swf", "pcm_u8", "pcm_s8", "pcm_alaw", "pcm_mulaw",
    *(f"pcm_{kind}{end}" for kind in ("s16", "s24", "s32", "f32", "f64") for end in ("le", "be")),
})  # fmt: skip

MAX_FILE_BYTES = 4 * 2**30
MAX_SECONDS = 20 * 60  # of a clip
MAX_FILE_SECONDS = 12 * 60 * 60  # of a file that a segment is cut from, and of a recording to separate
MAX_PIXELS = 8192 * 4352  # of one picture
MIN_SECONDS = 1
SILENCE_DBFS = -60.0
JPEG_QUALITY = 95

_TIME_TOLERANCE = Fraction(1, 1000)  # s; Matroska rounds its time stamps to this
_FAILURES = (OSError, ValueError, OverflowError, MemoryError)  # of reading and decoding, besides FFmpeg's own
_MAX_MISSING_SECONDS = 0.5  # by which a file may end before its declared end
_STILL_LEVELS = 6  # of 255, by which a block's mean may move while nothing does: lossy coding moves it too
_PREROLL_SECONDS = 1  # decoded before and after a segment: decoders must settle, and streams be interleaved
_TIME_BASE = 1_000_000  # FFmpeg's, of whole files
_UNKNOWN_WAV_BYTES = 2**31 - 2**16  # a program that writes WAV into a pipe states a size that no file has


class Refused(Exception):
    """A clip cannot be used; carries the reason and a sentence."""


def refuse(reason: str, detail: str) -> NoReturn:
    """Raise `Refused`."""
    raise Refused(reason, detail)


def outcome(make: Callable[[], Record]) -> Record | Rejection:
    """The record that `make` gives, or why its file gives none; no error of one file ends the work on the others."""
    try:
        return make()
    except Refused as refusal:
        return Rejection(*refusal.args)
    except Exception as error:
        return Rejection("undecodable", _sentence(error))


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a file, or a segment of it, holds; time 0 is the start of its earliest stream, or of the segment.

    Attributes:
        audio: mono at 16 kHz, finite.
        frames: JPEG pictures, see `Record`; empty where they were not asked for.
        still_picture: whether all decoded pictures are the same.
    """

    audio: Float32[np.ndarray, " L"]
    frames: tuple[bytes, ...]
    still_picture: bool


def decode(path: Path, *, pictures: bool, segment: Segment | None = None, max_seconds: int = MAX_SECONDS) -> Decoded:
    """Decode the first audio stream of a file and, with `pictures`, its first video stream, in one pass.

    Raises:
        Refused: the file is of no use.
        av.FFmpegError, OSError, ValueError, OverflowError, MemoryError: it cannot be read or decoded.
    """
    import av

    _check_file(path)
    if segment:
        try:
            return _decode(path, pictures, segment, max_seconds, seek=True)
        except (_SoughtInVainError, Refused, av.FFmpegError):  # what seeking breaks, reading from the start may not
            pass
    return _decode(path, pictures, segment, max_seconds, seek=False)


def read_sound_of(path: Path) -> Float32[np.ndarray, " L"]:
    """Decode the sound of a video or sound file: mono at 16 kHz, from the container's start.

    Raises:
        InputError: the file is missing, has no sound, or cannot be decoded.
    """
    import av

    try:
        return decode(path, pictures=False, max_seconds=MAX_FILE_SECONDS).audio
    except Refused as refusal:
        raise InputError(f"The sound of {path} cannot be used: {refusal.args[1]}; give another file.") from None
    except (av.FFmpegError, *_FAILURES) as error:
        raise InputError(f"{path} cannot be decoded ({_sentence(error)}); convert it to MP4 or WAV.") from error


def checked_audio(audio: Float32[np.ndarray, " L"]) -> Int16[np.ndarray, " L"]:
    """Convert to 16 bits; `Refused` where the audio is too short or silent."""
    if len(audio) < MIN_SECONDS * SAMPLE_RATE_HZ:
        refuse("too_short", f"{len(audio) / SAMPLE_RATE_HZ:.2f} s of audio, below {MIN_SECONDS} s")
    samples = np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)
    peak = dbfs(float(np.abs(samples.astype(np.int32)).max()))
    if peak < SILENCE_DBFS:
        refuse("silent", f"its peak is {peak:.1f} dBFS, below {SILENCE_DBFS:.0f} dBFS")
    return samples


def _sentence(error: BaseException) -> str:
    import av

    told = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return f"it cannot be decoded: {told}" if isinstance(error, av.FFmpegError) else told


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        refuse("missing", "there is no such file")
    if not stat.S_ISREG(status.st_mode):
        refuse("undecodable", "it is not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        refuse("oversize", f"{status.st_size} bytes, above {MAX_FILE_BYTES}")


def _is_wav_of_unknown_size(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    place = head.find(b"data")
    if not head.startswith(b"RIFF") or head[8:12] != b"WAVE" or place < 0:
        return False
    num_bytes = int.from_bytes(head[place + 4 : place + 8], "little")
    return num_bytes == 0 or num_bytes > _UNKNOWN_WAV_BYTES


def _open_container(file: BinaryIO, formats: Sequence[str]) -> Any:
    """Open a file that is already open, in one of the allowed formats and without access to any other file."""
    import av

    def refuse_other_files(url: str, flags: int, options: dict[str, str]) -> NoReturn:
        raise PermissionError("it refers to another file")

    lists = {"format_whitelist": ",".join(formats), "codec_whitelist": ",".join(sorted(CODECS))}
    return av.open(
        file,
        mode="r",
        metadata_errors="replace",
        options={"max_pixels": str(MAX_PIXELS), "threads": "1"},
        container_options=lists | {"enable_drefs": "0"},
        io_open=refuse_other_files,
    )


class _SoughtInVainError(Exception):
    """Seeking led behind the start of the segment, or failed."""


def _decode(path: Path, pictures: bool, segment: Segment | None, max_seconds: int, seek: bool) -> Decoded:
    ends_anywhere = _is_wav_of_unknown_size(path)
    with path.open("rb") as file, _open_container(file, VIDEO_FORMATS if pictures else SOUND_FORMATS) as container:
        video, sound = _streams(container, pictures)
        streams = [video, sound] if video else [sound]
        for stream in streams:
            _make_ready(stream)
        start, end = _span(container, segment, max_seconds)
        if seek:
            _seek(container, start)
        seen, heard = _Pictures(start), _Sound(start, max_seconds)
        passed: set[int] = set()  # streams that have come to the end of the segment
        for stream, frame in _frames(container, streams, ends_anywhere):
            time = _time(frame)
            if end is not None and time is not None and time > end + _PREROLL_SECONDS:
                passed.add(stream.index)
                if len(passed) == len(streams):
                    break
            else:
                (seen if stream is video else heard).add(frame)
        if seek and (heard.begins_late or (video and seen.begins_late)):
            raise _SoughtInVainError
        audio = heard.finish()
        if not ends_anywhere:
            _check_complete(container, sound, (start, end), len(audio) / SAMPLE_RATE_HZ, seen.end)
    if end is not None:
        audio = audio[: round((end - start) * SAMPLE_RATE_HZ)]
    if not np.isfinite(audio).all():
        refuse("undecodable", "its audio holds NaN or infinity")
    seconds = min(len(audio) / SAMPLE_RATE_HZ, float(seen.end))
    return Decoded(audio, seen.finish(seconds) if video else (), seen.still)


def _streams(container: Any, pictures: bool) -> tuple[Any, Any]:
    """The first video stream, None without `pictures`, and the first audio stream."""
    from av.stream import Disposition

    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    sounds = container.streams.audio
    if pictures and not videos:
        refuse("no_video", "it has no video stream")
    if not sounds:
        refuse("no_audio", "it has no audio stream")
    return videos[0] if pictures else None, sounds[0]


def _span(container: Any, segment: Segment | None, max_seconds: int) -> tuple[Fraction, Fraction | None]:
    """Start and end of what is decoded, in the container's time; no end means its end."""
    start = Fraction(container.start_time or 0, _TIME_BASE)
    seconds = container.duration / _TIME_BASE if container.duration else None
    if segment is None or (seconds is not None and seconds <= segment.seconds + _MAX_MISSING_SECONDS):
        _check_duration(seconds or 0.0, max_seconds)
        return start, None
    _check_duration(seconds or 0.0, MAX_FILE_SECONDS)
    if seconds is not None and seconds <= segment.start_seconds:
        refuse("too_short", f"it ends after {seconds:.2f} s, before its clip begins at {segment.start_seconds:g} s")
    start += Fraction(segment.start_seconds)
    return start, start + Fraction(segment.seconds)


def _seek(container: Any, start: Fraction) -> None:
    import av

    try:
        container.seek(int((start - _PREROLL_SECONDS) * _TIME_BASE), backward=True)
    except av.FFmpegError as error:
        raise _SoughtInVainError from error


def _frames(container: Any, streams: Sequence[Any], ends_anywhere: bool) -> Iterator[tuple[Any, Any]]:
    """Give each decoded frame with its stream."""
    for packet in container.demux(*streams):
        if packet.is_corrupt and not ends_anywhere:
            refuse("undecodable", "it ends in the middle, or is damaged")
        for frame in packet.decode():
            yield packet.stream, frame


def _make_ready(stream: Any) -> None:
    """Check what is known of a stream before it is decoded, and bound its decoder."""
    codec = stream.codec_context
    if codec is None:
        refuse("undecodable", f"its {stream.type} codec is unknown")
    if codec.codec.name not in CODECS:
        refuse("undecodable", f"its {stream.type} codec {codec.codec.name} is none of those that are read")
    codec.thread_count = 1  # many clips are read at a time
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    if stream.type == "video":
        _check_size(codec.width, codec.height)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        refuse("oversize", f"pictures of {width} x {height} pixels, above {MAX_PIXELS}")
    if not width or not height:  # FFmpeg forgets the size where its own check, in some formats, comes first
        refuse("undecodable", f"its pictures are of unknown size, or above {MAX_PIXELS} pixels")


def _check_duration(seconds: float, max_seconds: int) -> None:
    if seconds > max_seconds:
        refuse("oversize", f"{seconds:.0f} s, above {max_seconds} s")


def _check_complete(
    container: Any, sound: Any, span: tuple[Fraction, Fraction | None], seconds: float, picture_end: Fraction
) -> None:
    """Refuse a file that ends before it, or the span, says that it does: a download that was cut off."""
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


class _Sound:
    """Gathers decoded audio as mono float32 at 16 kHz whose sample 0 is at `start`."""

    def __init__(self, start: Fraction, max_seconds: int) -> None:
        from av import AudioResampler

        self._start = start
        self._max_seconds = max_seconds
        self._offset_samples: int | None = None
        self._seconds = 0.0
        self._chunks: list[np.ndarray] = []
        self._resampler = AudioResampler(format="fltp", rate=SAMPLE_RATE_HZ)

    def add(self, frame: Any) -> None:
        seconds = Fraction(frame.samples, frame.sample_rate)
        if self._offset_samples is None:
            time = _time(frame)
            offset = Fraction(0) if time is None else time - self._start
            if offset + seconds < -_PREROLL_SECONDS:
                return
            self._offset_samples = round(offset * SAMPLE_RATE_HZ)
            self._seconds = float(offset)
        self._seconds += float(seconds)
        _check_duration(self._seconds, self._max_seconds)  # before resampling, which may multiply the samples
        self._gather(frame)

    def _gather(self, frame: Any) -> None:
        for resampled in self._resampler.resample(frame):
            self._chunks.append(resampled.to_ndarray().mean(axis=0, dtype=np.float32))

    @property
    def begins_late(self) -> bool:
        return self._offset_samples is None or self._offset_samples > 0

    def finish(self) -> Float32[np.ndarray, " L"]:
        if self._offset_samples is None:
            refuse("undecodable", "no audio could be decoded")
        self._gather(None)
        audio = np.concatenate([np.zeros(max(0, self._offset_samples), np.float32), *self._chunks])
        return audio[max(0, -self._offset_samples) :]


class _Pictures:
    """Gathers, from pictures in the order of display, those shown at 0.5 s, 1.5 s, ... after `start`.

    Attributes:
        end: of the last picture, in seconds after `start`.
        still: whether all pictures shown from `start` on are the same, as far as lossy coding lets them be.
    """

    def __init__(self, start: Fraction) -> None:
        self.end = Fraction(0)
        self.still = False
        self._start = start
        self._first: np.ndarray | None = None
        self._first_shown: Fraction | None = None
        self._latest: Any = None
        self._latest_jpeg = b""
        self._jpegs: list[bytes] = []

    def add(self, frame: Any) -> None:
        time = _time(frame)
        shown = self.end if time is None else time - self._start
        _check_duration(float(shown), MAX_SECONDS)
        if self._first_shown is None:
            self._first_shown = shown
        while self._latest is not None and len(self._jpegs) + Fraction(1, 2) + _TIME_TOLERANCE < shown:
            self._take_latest()
        self._latest, self._latest_jpeg = frame, b""
        self.end = max(self.end, shown + (frame.duration or 0) * (frame.time_base or 0))
        if shown >= 0 and (self._first is None or self.still):
            self._compare(frame)

    @property
    def begins_late(self) -> bool:
        return self._first_shown is None or self._first_shown > 0

    def _compare(self, frame: Any) -> None:
        brightness = _brightness(frame)
        if self._first is None:
            self._first = brightness
        alike = brightness.shape == self._first.shape
        self.still = alike and bool(np.abs(brightness - self._first).max() <= _STILL_LEVELS)

    def _take_latest(self) -> None:
        self._latest_jpeg = self._latest_jpeg or _encode_jpeg(self._latest)
        self._jpegs.append(self._latest_jpeg)

    def finish(self, seconds: float) -> tuple[bytes, ...]:
        """Give the pictures of the first `seconds`: one a second, rounded, at least one."""
        if self._latest is None:
            refuse("undecodable", "no picture could be decoded")
        num_frames = max(1, math.floor(seconds + 0.5))
        while len(self._jpegs) < num_frames:
            self._take_latest()
        return tuple(self._jpegs[:num_frames])


def _time(frame: Any) -> Fraction | None:
    return None if frame.pts is None or frame.time_base is None else Fraction(frame.pts) * frame.time_base


def _brightness(frame: Any) -> Int16[np.ndarray, "h w"]:
    """Means of blocks of 8 x 8 pixels, 0 to 255."""
    width, height = max(1, frame.width // 8), max(1, frame.height // 8)
    return frame.reformat(width, height, "gray", interpolation="AREA").to_ndarray().astype(np.int16)


def _encode_jpeg(frame: Any) -> bytes:
    """Turn a picture upright and encode it."""
    picture = frame.to_image()
    if frame.rotation:
        picture = picture.rotate(frame.rotation, expand=True)
    return square_jpeg(picture)


def square_jpeg(picture: Image.Image) -> bytes:
    """Bring the shorter side to 224 pixels (bicubic), keep the centre, and compress."""
    buffer = BytesIO()
    crop_square(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def crop_square(picture: Image.Image) -> Image.Image:
    """Resize the shorter side to 224 and crop the centre, in one step: the sides of a very long picture stay unmade."""
    shorter = min(picture.size)
    scales = [side / int(FRAME_SIZE * side / shorter) for side in picture.size]
    lefts = [round((int(FRAME_SIZE * side / shorter) - FRAME_SIZE) / 2) for side in picture.size]
    left, top, right, bottom = (
        scale * (corner + size) for size in (0, FRAME_SIZE) for scale, corner in zip(scales, lefts, strict=True)
    )
    box = (left, top, min(right, picture.width), min(bottom, picture.height))
    return picture.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BICUBIC, box=box)
