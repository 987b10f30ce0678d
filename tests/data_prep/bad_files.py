"""A corpus of files as in real collections, and worse, with the outcome that each must have."""

import os
import shutil
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

from tests.data_prep.made_media import grey_pictures, make_video, tone

NUM_CUTS = 10
# By kind; {} is what they lead to.
PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:3\n#EXTINF:3.0,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile {}\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    "<Representation><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>",
}


@contextmanager
def watched_file(path: Path) -> Iterator[threading.Event]:
    """A pipe in the place of a file, and whether anybody has opened it to read."""
    os.mkfifo(path)
    opened = threading.Event()

    def wait_for_a_reader() -> None:
        os.close(os.open(path, os.O_WRONLY))  # returns once somebody opens the pipe to read
        opened.set()

    waiter = threading.Thread(target=wait_for_a_reader)
    waiter.start()
    try:
        yield opened
    finally:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        waiter.join()


def make_corpus(folder: Path, url: str) -> dict[str, str]:
    """Write the files below `folder`; the reason of each by name, "" where it must be accepted.

    Playlists point at `url` and at `secret.ts` beside them.
    """
    return {
        **_cut_off(folder),
        **_no_media(folder),
        **_playlists(folder, url),
        **_absurd_headers(folder),
        **_lacking(folder),
        **_odd_but_good(folder),
    }


def _video(path: Path, seconds: float = 2.0, **options) -> Path:
    return make_video(path, tone(seconds), grey_pictures(round(seconds * 10)), **options)


def _cut_off(folder: Path) -> dict[str, str]:
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 132_300)).astype(np.float32)
    reasons = {}
    for number in range(NUM_CUTS):  # half of them with the tables in front, so that the beginning can be read
        options = {"movflags": "faststart"} if number % 2 else {}
        path = make_video(folder / f"cut{number}.mp4", noise, grey_pictures(30), options=options)
        os.truncate(path, path.stat().st_size * (number + 1) // (NUM_CUTS + 2))
        reasons[path.name] = "undecodable"
    for suffix in (".mkv", ".avi"):
        path = make_video(folder / f"cut{suffix}", noise, grey_pictures(30))
        os.truncate(path, path.stat().st_size // 2)
        reasons[path.name] = "undecodable"
    return reasons


def _no_media(folder: Path) -> dict[str, str]:
    (folder / "text.mp4").write_text("This is not a video.\n" * 50)
    (folder / "empty.mp4").touch()
    (folder / "zeros.mkv").write_bytes(bytes(10_000))
    (folder / "noise.webm").write_bytes(np.random.default_rng(1).bytes(100_000))
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    page = "<!DOCTYPE html><html><body>429 Too Many Requests</body></html>"
    (folder / "page.mp4").write_text(page)
    names = ("text.mp4", "empty.mp4", "zeros.mkv", "noise.webm", "folder.mp4", "pipe.mp4", "page.mp4")
    return dict.fromkeys(names, "undecodable") | {"dangling.mp4": "missing", "gone.mp4": "missing"}


def _playlists(folder: Path, url: str) -> dict[str, str]:
    reasons = {}
    for name, text in PLAYLISTS.items():
        for kind, target in {"local": "secret.ts", "url": f"{url}/secret.ts"}.items():
            path = folder / f"{name}-{kind}.mp4"
            path.write_text(text.format(target))
            reasons[path.name] = "undecodable"
    return reasons


def _absurd_headers(folder: Path) -> dict[str, str]:
    good = _video(folder / "good.mp4")
    reasons = {"good.mp4": ""}

    def patched(name: str, box: bytes, offset: int, value: bytes, reason: str) -> None:
        data = bytearray(good.read_bytes())
        start = data.index(box) + 4 + offset
        data[start : start + len(value)] = value
        (folder / name).write_bytes(data)
        reasons[name] = reason

    long = _video(folder / "long.mkv")
    data = long.read_bytes()
    place = data.index(b"\x44\x89\x88") + 3  # the duration of a Matroska file, in ms
    long.write_bytes(data[:place] + struct.pack(">d", 1e9) + data[place + 8 :])
    reasons["long.mkv"] = "oversize"
    patched("huge.mp4", b"stsd", 8 + 8 + 24, struct.pack(">HH", 65_535, 65_535), "")  # H.264 tells its true size itself
    patched("samples.mp4", b"stsz", 8, b"\xff\xff\xff\xf0", "undecodable")
    patched("offsets.mp4", b"stco", 8, b"\xff\xff\xff\x00", "undecodable")
    patched("box.mp4", b"moov", -8, b"\xff\xff\xff\xff", "")  # the last box: it ends with the file
    patched("scale.mp4", b"mdhd", 12, bytes(4), "")  # no units a second: FFmpeg takes one
    return reasons


def _lacking(folder: Path) -> dict[str, str]:
    pictures = grey_pictures(20)
    make_video(folder / "mute.mp4", None, pictures)
    make_video(folder / "blind.mp4", tone(2.0))
    make_video(folder / "silence.mkv", np.zeros((1, 88_200), np.float32), pictures)
    make_video(folder / "faint.mkv", tone(2.0, 16_000, gains=(0.0009,)), pictures, rate=16_000)
    _video(folder / "half.mkv", 0.5)
    nan = tone(2.0, 16_000, gains=(0.5,))
    nan[0, 5_000] = np.nan
    make_video(folder / "nan.mkv", nan, pictures, rate=16_000, audio_codec="pcm_f32le")
    shutil.copy(folder / "good.mp4", folder / "same.mp4")
    return {
        "mute.mp4": "no_audio",
        "blind.mp4": "no_video",
        "silence.mkv": "silent",
        "faint.mkv": "silent",
        "half.mkv": "too_short",
        "nan.mkv": "undecodable",
        "same.mp4": "duplicate",
    }


def _odd_but_good(folder: Path) -> dict[str, str]:
    pictures = grey_pictures(20)
    make_video(folder / "one.mp4", tone(2.0), pictures[:1])
    make_video(folder / "surround.mkv", tone(2.0, 48_000, gains=(0.5,) * 6), pictures, rate=48_000)
    for codec, rate in {"pcm_u8": 8_000, "pcm_s24le": 48_000, "pcm_f32le": 44_100, "pcm_s16le": 192_000}.items():
        make_video(folder / f"{codec}.mkv", tone(2.0, rate, gains=(0.4,)), pictures, rate=rate, audio_codec=codec)
    make_video(folder / "sound-shorter.mkv", tone(1.5), grey_pictures(40))
    make_video(folder / "sound-longer.mkv", tone(4.0), pictures)
    make_video(folder / "late-sound.mkv", tone(2.0), pictures, audio_start=0.7)
    _variable_frame_rate(folder / "variable.mkv")
    _rotated(_video(folder / "rotated.mp4", options={"movflags": "faststart"}))
    name = os.fsdecode(b"caf\xe9.mp4")
    _video(folder / name, 2.2)
    names = ("one.mp4", "surround.mkv", "pcm_u8.mkv", "pcm_s24le.mkv", "pcm_f32le.mkv", "pcm_s16le.mkv")
    more = ("sound-shorter.mkv", "sound-longer.mkv", "late-sound.mkv", "variable.mkv", "rotated.mp4", name)
    return dict.fromkeys((*names, *more), "")


def _variable_frame_rate(path: Path) -> None:
    times = np.cumsum(np.tile([20, 180, 400], 4))  # ms
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=1000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for time, picture in zip(times, grey_pictures(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = int(time)
            container.mux(video.encode(frame))
        samples = (tone(2.4, 16_000, gains=(0.4,)) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(sound.encode(frame))
        for stream in (video, sound):
            container.mux(stream.encode(None))


def _rotated(path: Path) -> None:
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
