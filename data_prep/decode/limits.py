"""Limits on media files: an allow-list of formats and codecs, and maximum sizes."""

import stat
from pathlib import Path

from clipsep_jax.data_prep.decode.refusal import refuse

VIDEO_FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg")  # as FFmpeg calls them
SOUND_FORMATS = (*VIDEO_FORMATS, "wav", "w64", "flac", "mp3", "aiff", "aac", "au", "caf", "amr")
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
MAX_FILE_SECONDS = 12 * 60 * 60  # of a file that a segment is cut from
RATES_HZ = (1_000, 768_000)
MAX_CHANNELS = 64
MAX_PIXELS = 8192 * 4352  # of one picture


def check_file(path: Path, *, any_size: bool = False) -> None:
    """Raise `Refused` if there is no such regular file, or it is too large."""
    num_bytes = _size_of(path)
    if not num_bytes:
        refuse("undecodable", "it is empty")
    if num_bytes > MAX_FILE_BYTES and not any_size:
        refuse("oversize", f"{num_bytes} bytes, above {MAX_FILE_BYTES}")


def _size_of(path: Path) -> int:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        refuse("missing", "there is no such file")
    if not stat.S_ISREG(status.st_mode):
        refuse("undecodable", "it is a folder, a pipe or a device")
    return status.st_size


def check_duration(seconds: float, max_seconds: int) -> None:
    """Raise `Refused` if a clip or file is too long."""
    if seconds > max_seconds:
        refuse("oversize", f"{seconds:.0f} s, above {max_seconds} s")


def check_sound_format(rate_hz: int, num_channels: int) -> None:
    """Raise `Refused` at a sample rate or a number of channels that no recording has."""
    least, most = RATES_HZ
    if not least <= rate_hz <= most:
        refuse("undecodable", f"its sample rate is {rate_hz} Hz, not from {least} to {most} Hz")
    if num_channels > MAX_CHANNELS:
        refuse("oversize", f"{num_channels} channels, above {MAX_CHANNELS}")


def check_picture_size(width: int, height: int) -> None:
    """Raise `Refused` if a picture is too large or of unknown size."""
    if width * height > MAX_PIXELS:
        refuse("oversize", f"pictures of {width} x {height} pixels, above {MAX_PIXELS}")
    if not width or not height:  # in some formats FFmpeg's own check comes first and clears the size
        refuse("undecodable", f"its pictures are of unknown size, or above {MAX_PIXELS} pixels")
