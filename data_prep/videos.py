"""A folder of videos -> records: which files there are, and what one of them gives."""

import csv
import hashlib
import math
import stat
from collections.abc import Iterator, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn

import numpy as np
from jaxtyping import Float32, Int16
from PIL import Image

from clipsep_jax.queries import DEFAULT_TEMPLATE
from clipsep_jax.records import FRAME_SIZE, SAMPLE_RATE_HZ, Manifest, Record
from clipsep_jax.structures import InputError
from data_prep.embed import Encoder
from data_prep.ledger import Input, Rejection, peak_dbfs
from data_prep.writer import SPLITS, write_records

VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4a", ".m4v", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip
CONTAINER_FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "flv")  # as FFmpeg calls them

MAX_FILE_BYTES = 4 * 2**30
MAX_SECONDS = 20 * 60
MAX_SOUND_SECONDS = 12 * 60 * 60  # of a recording that is read for its sound alone
MAX_PIXELS = 8192 * 4352  # of one picture
MIN_SECONDS = 1
SILENCE_DBFS = -60.0
JPEG_QUALITY = 95

_TIME_TOLERANCE = Fraction(1, 1000)  # s; Matroska rounds its time stamps to this
_FAILURES = (OSError, ValueError, OverflowError, MemoryError)  # of reading and decoding, besides FFmpeg's own
_MAX_MISSING_SECONDS = 0.5  # by which audio may end before its declared end


class _Refused(Exception):
    """A clip cannot be used; carries the reason and a sentence."""


def _refuse(reason: str, detail: str) -> NoReturn:
    raise _Refused(reason, detail)


def read_video(path: Path, id: str, label: str = "") -> Record | Rejection:
    """Read one clip: mono audio at 16 kHz and a picture a second, both counted from the container's start.

    The result depends on the file's content alone. Playlists and network addresses are never followed.
    """
    import av

    try:
        _check_file(path)
        with path.open("rb") as file, _open_container(file) as container:
            audio, frames = _decode(container)
        return Record(id=id, label=label, audio=_checked_audio(audio), frames=frames)
    except _Refused as refusal:
        return Rejection(*refusal.args)
    except (av.FFmpegError, *_FAILURES) as error:
        return Rejection("undecodable", _sentence(error))


def read_video_sound(path: Path) -> Float32[np.ndarray, "L"]:
    """Decode the sound of a video file alone: mono at 16 kHz, from the container's start.

    Raises:
        InputError: the file is missing, has no sound, or cannot be decoded.
    """
    import av

    try:
        _check_file(path)
        with path.open("rb") as file, _open_container(file) as container:
            if not container.streams.audio:
                _refuse("no_audio", "it has no audio stream")
            stream, sound = container.streams.audio[0], _Sound(_start(container), MAX_SOUND_SECONDS)
            for _, frame in _decoded(container, stream):
                sound.add(frame)
            audio = _finite(sound.finish())
            _check_complete(container, stream, len(audio) / SAMPLE_RATE_HZ)
            return audio
    except _Refused as refusal:
        raise InputError(f"The sound of {path} cannot be used: {refusal.args[1]}; give another file.") from None
    except (av.FFmpegError, *_FAILURES) as error:
        raise InputError(f"{path} cannot be decoded ({_sentence(error)}); convert it to MP4 or WAV.") from error


def _sentence(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        _refuse("missing", "there is no such file")
    if not stat.S_ISREG(status.st_mode):
        _refuse("undecodable", "it is not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        _refuse("oversize", f"{status.st_size} bytes, above {MAX_FILE_BYTES}")


def _open_container(file: BinaryIO) -> Any:
    """Open a file that is already open, in one of the allowed formats and without access to any other file."""
    import av

    def refuse_other_files(url: str, flags: int, options: dict[str, str]) -> NoReturn:
        raise PermissionError("it refers to another file")

    return av.open(
        file,
        mode="r",
        metadata_errors="replace",
        options={"max_pixels": str(MAX_PIXELS), "threads": "1"},
        container_options={"format_whitelist": ",".join(CONTAINER_FORMATS), "enable_drefs": "0"},
        io_open=refuse_other_files,
    )


def _decode(container: Any) -> tuple[Float32[np.ndarray, "L"], tuple[bytes, ...]]:
    """Decode the first audio and the first video stream in one pass."""
    from av.stream import Disposition

    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    sounds = container.streams.audio
    if not videos:
        _refuse("no_video", "it has no video stream")
    if not sounds:
        _refuse("no_audio", "it has no audio stream")
    start = _start(container)
    pictures, sound = _Pictures(start), _Sound(start, MAX_SECONDS)
    for stream, frame in _decoded(container, videos[0], sounds[0]):
        (pictures if stream is videos[0] else sound).add(frame)
    audio = sound.finish()
    seconds = len(audio) / SAMPLE_RATE_HZ
    _check_complete(container, sounds[0], seconds)
    return audio, pictures.finish(min(seconds, float(pictures.end)))


def _start(container: Any) -> Fraction:
    return Fraction(container.start_time or 0, 1_000_000)


def _decoded(container: Any, *streams: Any) -> Iterator[tuple[Any, Any]]:
    """Give each decoded frame with its stream."""
    _make_ready(container, *streams)
    for packet in container.demux(*streams):
        if packet.is_corrupt:
            _refuse("undecodable", "it ends in the middle, or is damaged")
        for frame in packet.decode():
            yield packet.stream, frame


def _make_ready(container: Any, *streams: Any) -> None:
    """Check what the container says of itself and of the streams that will be decoded, and bound their decoders."""
    max_seconds = MAX_SECONDS if any(stream.type == "video" for stream in streams) else MAX_SOUND_SECONDS
    if container.duration and container.duration > max_seconds * 1_000_000:
        _refuse_duration(container.duration / 1_000_000, max_seconds)
    for stream in streams:
        if stream.codec_context is None:
            _refuse("undecodable", f"its {stream.type} codec is unknown")
        stream.codec_context.thread_count = 1  # many clips are read at a time
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        if stream.type == "video":
            _check_size(stream.codec_context.width, stream.codec_context.height)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        _refuse("oversize", f"pictures of {width} x {height} pixels, above {MAX_PIXELS}")
    if not width or not height:  # FFmpeg forgets the size where its own check, in some formats, comes first
        _refuse("undecodable", f"its pictures are of unknown size, or above {MAX_PIXELS} pixels")


def _refuse_duration(seconds: float, max_seconds: int) -> NoReturn:
    _refuse("oversize", f"{seconds:.0f} s, above {max_seconds} s")


def _check_complete(container: Any, sound: Any, seconds: float) -> None:
    """Refuse an MP4 file whose audio ends before its tables say: a download that was cut off."""
    if "mp4" not in container.format.name or not sound.duration:
        return
    declared = float(sound.duration * sound.time_base)
    if seconds < declared - _MAX_MISSING_SECONDS:
        _refuse("undecodable", f"its audio ends after {seconds:.2f} s of {declared:.2f} s")


def _finite(audio: Float32[np.ndarray, "L"]) -> Float32[np.ndarray, "L"]:
    if not np.isfinite(audio).all():
        _refuse("undecodable", "its audio holds NaN or infinity")
    return audio


def _checked_audio(audio: Float32[np.ndarray, "L"]) -> Int16[np.ndarray, "L"]:
    """Convert to 16 bits, unless the audio is of no use."""
    if len(_finite(audio)) < MIN_SECONDS * SAMPLE_RATE_HZ:
        _refuse("too_short", f"{len(audio) / SAMPLE_RATE_HZ:.2f} s of audio, below {MIN_SECONDS} s")
    samples = np.clip(np.rint(audio * 32768), -32768, 32767).astype(np.int16)
    if peak_dbfs(samples) < SILENCE_DBFS:
        _refuse("silent", f"its peak is {peak_dbfs(samples):.1f} dBFS, below {SILENCE_DBFS:.0f} dBFS")
    return samples


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
        if self._offset_samples is None:
            offset = (_time(frame) or self._start) - self._start
            self._offset_samples = round(offset * SAMPLE_RATE_HZ)
            self._seconds = max(0.0, float(offset))
        self._seconds += frame.samples / frame.sample_rate
        if self._seconds > self._max_seconds:  # before resampling, which may multiply the samples
            _refuse_duration(self._seconds, self._max_seconds)
        self._gather(frame)

    def _gather(self, frame: Any) -> None:
        for resampled in self._resampler.resample(frame):
            self._chunks.append(resampled.to_ndarray().mean(axis=0, dtype=np.float32))

    def finish(self) -> Float32[np.ndarray, "L"]:
        if self._offset_samples is None:
            _refuse("undecodable", "no audio could be decoded")
        self._gather(None)
        audio = np.concatenate([np.zeros(max(0, self._offset_samples), np.float32), *self._chunks])
        return audio[max(0, -self._offset_samples) :]


class _Pictures:
    """Gathers, from pictures in the order of display, those shown at 0.5 s, 1.5 s, ... after `start`."""

    def __init__(self, start: Fraction) -> None:
        self.end = Fraction(0)
        self._start = start
        self._latest: Any = None
        self._latest_jpeg = b""
        self._jpegs: list[bytes] = []

    def add(self, frame: Any) -> None:
        time = _time(frame)
        shown = self.end if time is None else time - self._start
        if shown > MAX_SECONDS:
            _refuse_duration(float(shown), MAX_SECONDS)
        while self._latest is not None and len(self._jpegs) + Fraction(1, 2) + _TIME_TOLERANCE < shown:
            self._take_latest()
        self._latest, self._latest_jpeg = frame, b""
        self.end = max(self.end, shown + (frame.duration or 0) * (frame.time_base or 0))

    def _take_latest(self) -> None:
        self._latest_jpeg = self._latest_jpeg or _encode_jpeg(self._latest)
        self._jpegs.append(self._latest_jpeg)

    def finish(self, seconds: float) -> tuple[bytes, ...]:
        """Give the pictures of the first `seconds`: one a second, rounded, at least one."""
        if self._latest is None:
            _refuse("undecodable", "no picture could be decoded")
        num_frames = max(1, math.floor(seconds + 0.5))
        while len(self._jpegs) < num_frames:
            self._take_latest()
        return tuple(self._jpegs[:num_frames])


def _time(frame: Any) -> Fraction | None:
    return None if frame.pts is None or frame.time_base is None else Fraction(frame.pts) * frame.time_base


def _encode_jpeg(frame: Any) -> bytes:
    """Turn upright, bring the shorter side to 224 pixels (bicubic), keep the centre, and compress."""
    picture = frame.to_image()
    if frame.rotation:
        picture = picture.rotate(frame.rotation, expand=True)
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


def find_videos(folder: Path, labels_csv: Path | None = None) -> list[Input]:
    """List the clips to prepare.

    Without a CSV file: every file below `folder` with a suffix of videos, sorted by path, label unknown. With one:
    its rows, in its order. A clip without a stated split is put into one by a hash of its id (80% train, 10%
    validation, 10% test).

    Raises:
        InputError: the folder is missing or empty, or the CSV file is missing or malformed.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; name the folder that holds the videos.")
    inputs = _walk(folder) if labels_csv is None else list(_read_rows(folder, labels_csv))
    if not inputs:
        raise InputError(f"{labels_csv or folder} holds no videos; name another folder or list.")
    return inputs


def _walk(folder: Path) -> list[Input]:
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    ids = sorted(path.relative_to(folder).as_posix() for path in paths)
    return [Input(id, folder / id, "", hashed_split(id)) for id in ids]


def hashed_split(id: str) -> str:
    """Choose a split that depends on the id alone: 80% train, 10% validation, 10% test."""
    digest = hashlib.sha256(id.encode("utf-8", "surrogateescape")).digest()
    tenth = int.from_bytes(digest[:8], "big") * 10 // 2**64
    return {8: "validation", 9: "test"}.get(tenth, "train")


def _read_rows(folder: Path, labels_csv: Path) -> Iterator[Input]:
    if not labels_csv.is_file():
        raise InputError(f"There is no file {labels_csv}; give a CSV file with the columns video,label.")
    seen: set[str] = set()
    try:
        with labels_csv.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"video", "label"} <= set(rows.fieldnames or ()):
                raise InputError(f"{labels_csv} lacks a column: its first line must name video,label (and more).")
            for row in rows:
                source = _row_input(folder, row, f"{labels_csv}, line {rows.line_num}")
                if source.id in seen:
                    raise InputError(f"{labels_csv}, line {rows.line_num}: {source.id} is listed twice; remove one.")
                seen.add(source.id)
                yield source
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{labels_csv} is no readable CSV file in UTF-8 ({error}); save it again as such.") from error


def _row_input(folder: Path, row: dict[str, str | None], where: str) -> Input:
    relative = PurePosixPath((row["video"] or "").strip())
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or "\0" in str(relative):
        raise InputError(f"{where}: {row['video']!r} is no path below {folder}; give one relative to that folder.")
    id = relative.as_posix()
    split = (row.get("split") or "").strip() or hashed_split(id)
    if split not in SPLITS:
        raise InputError(f"{where}: the split {split!r} is unknown; use {', '.join(SPLITS)} or leave it empty.")
    return Input(id, folder / id, (row["label"] or "").strip(), split)


def prepare_videos(
    folder: Path,
    out: Path,
    *,
    labels_csv: Path | None = None,
    encoder: Encoder | None = None,
    template: str = DEFAULT_TEMPLATE,
    num_workers: int = 1,
    block_size: int = 64,
    command: Sequence[str] = (),
) -> Manifest:
    """Turn a folder of videos into a folder of records; see `find_videos` and `data_prep.writer.write_records`.

    Raises:
        InputError: as they do.
    """
    return write_records(
        find_videos(folder, labels_csv),
        read_video,
        out,
        encoder=encoder,
        template=template,
        num_workers=num_workers,
        block_size=block_size,
        command=command,
    )
