"""Small videos with known sound and known pictures."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CODECS = {".mp4": ("libx264", "aac"), ".mkv": ("ffv1", "pcm_s16le"), ".avi": ("mpeg4", "pcm_s16le")}
CODECS |= {".ts": ("libx264", "aac"), ".webm": ("libvpx-vp9", "libopus"), ".flv": ("libx264", "aac")}
CODECS |= {".mpg": ("mpeg2video", "mp2")}


def tone(seconds: float, rate: int = 44_100, hz: float = 440.0, gains: tuple[float, ...] = (0.5, 0.3)) -> np.ndarray:
    """One sine per channel, [channels, samples], in phase."""
    wave = np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.outer(gains, wave).astype(np.float32)


def sweep(seconds: float, rate: int = 48_000) -> np.ndarray:
    """Two channels whose pitch encodes the time."""
    pitch = np.cumsum(np.linspace(300, 900, round(seconds * rate))) * 2 * np.pi / rate
    return np.stack([0.5 * np.sin(pitch)] * 2).astype(np.float32)


def assert_same_sound(part: np.ndarray, whole: np.ndarray, start: int) -> None:
    """Equal except for the millisecond to which some formats round, and half a sample: 0.18 of the level at 900 Hz."""
    inner, level = part[100:-100].astype(float), np.sqrt(np.mean(part.astype(float) ** 2))
    shifted = [whole[start + 100 + lag : start + 100 + lag + len(inner)] for lag in range(-16, 17)]
    assert min(np.sqrt(np.mean((inner - other) ** 2)) for other in shifted) < 0.18 * level


def grey_pictures(num: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Picture i is the plain grey 20 + 7 i, at most 250."""
    levels = np.minimum(20 + 7 * np.arange(num), 250).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num, height, width, 3)).copy()


def make_video(
    path: Path,
    audio: np.ndarray | None = None,
    pictures: np.ndarray | None = None,
    *,
    rate: int = 44_100,
    fps: int = 10,
    audio_codec: str | None = None,
    audio_start: float = 0.0,
    picture_start: float = 0.0,
    gop_size: int = 7,
    lag: float = 0.0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write `audio` [channels, samples] and `pictures` [n, height, width, 3] into a file of the suffix's format.

    Args:
        lag: seconds by which the packets of sound come late in the file, without being late in time.
    """
    layouts = {1: "mono", 2: "stereo", 6: "5.1"}
    video_codec, default_audio_codec = CODECS[path.suffix]
    options = {"max_interleave_delta": "1"} if lag else options or {}
    with av.open(str(path), "w", options=options) as container:
        video = sound = None
        packets: list[av.Packet] = []
        if pictures is not None:
            pixel_format = "bgr0" if video_codec == "ffv1" else "yuv420p"
            video = container.add_stream(video_codec, rate=fps)
            video.height, video.width, video.pix_fmt = *pictures.shape[1:3], pixel_format
            video.gop_size, video.bit_rate = gop_size, 4_000_000
        if audio is not None:
            codec = audio_codec or default_audio_codec
            sound = container.add_stream(codec, rate=rate, layout=layouts[len(audio)])
            sound.bit_rate = 192_000
        for index, picture in enumerate(pictures if video else ()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(picture_start * fps) + index, Fraction(1, fps)
            packets += video.encode(frame)
        if sound:
            packets += _encode_audio(sound, audio, rate, audio_start)
        for stream in filter(None, (video, sound)):
            packets += stream.encode(None)
        if lag:
            packets.sort(key=lambda packet: packet.dts * packet.time_base + (lag if packet.stream is sound else 0))
        container.mux(packets)
    return path


def _encode_audio(stream, audio: np.ndarray, rate: int, start: float) -> Iterator[av.Packet]:
    resampler = av.AudioResampler(format=stream.format.name, layout=stream.layout.name, rate=rate)
    for begin in range(0, audio.shape[1], 1024):
        part = np.ascontiguousarray(audio[:, begin : begin + 1024])
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=stream.layout.name)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(start * rate) + begin
        for converted in resampler.resample(frame):
            yield from stream.encode(converted)
