"""Files as people have them: each ends as a right result or as one sentence, and prepare can read the same ones."""

import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path, PurePath

import av
import numpy as np
import pytest
import soundfile

import clipsep_jax
from clipsep_jax.data_prep.ledger import Rejection
from clipsep_jax.data_prep.sources.audio import read_audio
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.errors import InputError
from clipsep_jax.separation.files import Recording
from clipsep_jax.separation.job import Job, separate_file
from clipsep_jax.separation.separator import Separator
from clipsep_jax.separation.stem_files import StemFormat
from clipsep_jax.separation.targets import Target
from tests.data_prep.bad_files import make_corpus
from tests.data_prep.made_media import grey_pictures, make_video, tone
from tests.small import QUERY_SIZE
from tests.sounds import read_sound

CHUNK = 2047


def noise(length: int, channels: int = 1, level: float = 0.3) -> np.ndarray:
    """[samples, channels]"""
    return np.random.default_rng(length).uniform(-level, level, (length, channels)).astype(np.float32)


def write(path: Path, sound: np.ndarray, rate: int = 16_000, subtype: str = "FLOAT", format: str = "WAV") -> np.ndarray:
    soundfile.write(os.fsencode(path), sound, rate, subtype, format=format)
    return sound.T


def _wav(rate: int, channels: int) -> Callable[[Path], np.ndarray]:
    return lambda path: write(path, noise(rate, channels), rate)


def _long(length: int) -> Callable[[Path], np.ndarray]:
    return lambda path: write(path, noise(length))


def _encoded(subtype: str, format: str = "WAV") -> Callable[[Path], np.ndarray]:
    return lambda path: write(path, noise(20_000), 16_000, subtype, format)


def _opposite(path: Path) -> np.ndarray:
    one = noise(20_000)
    return write(path, np.concatenate([one, -one], axis=1))


def _offset(path: Path) -> np.ndarray:
    return write(path, noise(20_000) * 0.1 + 0.8)


def _square(path: Path) -> np.ndarray:
    return write(path, np.sign(noise(20_000)))


def _piped(size: int) -> Callable[[Path], np.ndarray]:
    def make(path: Path) -> np.ndarray:
        sound = write(path, noise(20_000), subtype="PCM_16")
        data = bytearray(path.read_bytes())
        place = data.index(b"data") + 4
        data[place : place + 4] = struct.pack("<I", size)
        path.write_bytes(data)
        return sound

    return make


def _chained(path: Path) -> None:
    parts = []
    for number in range(2):
        soundfile.write(path, noise(20_000 + number), 16_000, "VORBIS", format="OGG")
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))


def _cut(keep: float, suffix: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        soundfile.write(path, noise(60_000), 16_000, format=suffix)
        os.truncate(path, int(path.stat().st_size * keep))

    return make


def _with_cover(path: Path) -> None:
    soundfile.write(path, noise(32_000), 16_000, format="MP3")
    picture = b"\x00image/png\x00\x03\x00" + bytes.fromhex("89504e470d0a1a0a") + bytes(200)
    frame = b"APIC" + struct.pack(">I", len(picture)) + b"\x00\x00" + picture
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\x00\x00" + size + frame + path.read_bytes())


def _sparse_hours(path: Path) -> None:
    num_samples = 10 * 3_600 * 16_000
    soundfile.write(path, np.zeros(16, np.int16), 16_000, "PCM_U8")
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[4:8], data[place : place + 4] = struct.pack("<I", num_samples + 36), struct.pack("<I", num_samples)
    path.write_bytes(data)
    os.truncate(path, place + 4 + num_samples)


def _late(path: Path) -> np.ndarray:
    """A video whose sound begins 0.15 s after its pictures."""
    sound = tone(1.0, 48_000)
    make_video(path.with_suffix(".mkv"), sound, grey_pictures(20), rate=48_000, audio_start=0.15)
    with av.open(str(path.with_suffix(".mkv"))) as source, av.open(str(path), "w", format="mov") as target:
        streams = {
            source.streams.video[0]: target.add_stream("mpeg4", rate=10, width=64, height=48, pix_fmt="yuv420p"),
            source.streams.audio[0]: target.add_stream_from_template(source.streams.audio[0]),
        }
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                for frame in packet.decode():
                    target.mux(streams[packet.stream].encode(frame.reformat(format="yuv420p")))
            else:
                packet.stream = streams[packet.stream]
                target.mux(packet)
        target.mux(streams[source.streams.video[0]].encode(None))
    return sound


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _bad_sample(value: float) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        sound = noise(20_000)
        sound[7_000] = value
        write(path, sound)

    return make


# The samples [C L] that a file holds, where they are known to a bit or nearly.
EXACT: dict[str, Callable[[Path], np.ndarray]] = {
    **{f"{rate}hz.wav": _wav(rate, 1) for rate in (8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000)},
    **{f"{channels}channels.wav": _wav(16_000, channels) for channels in (2, 3, 6, 8)},
    **{f"{length}.wav": _long(length) for length in (1, 10, CHUNK, CHUNK + 1)},
    **{f"{subtype}.wav": _encoded(subtype) for subtype in ("PCM_24", "PCM_32", "DOUBLE", "ULAW", "ALAW", "PCM_U8")},
    **{f"a.{format.lower()}": _encoded("PCM_16", format) for format in ("AIFF", "AU", "CAF", "FLAC", "W64", "RF64")},
    "opposite.wav": _opposite,
    "offset.wav": _offset,
    "square.wav": _square,
    "loud.wav": lambda path: write(path, noise(20_000, level=3.0)),
    "wav.mp3": _encoded("PCM_16"),
    "flac.ogg": _encoded("PCM_16", "FLAC"),
    "no-suffix": _encoded("PCM_16"),
    "piped-0.wav": _piped(0),
    "piped-max.wav": _piped(2**32 - 1),
    os.fsdecode(b"caf\xe9.wav"): _encoded("PCM_16"),
    "n" * 251 + ".wav": _encoded("PCM_16"),
}
# Files that can be read, with how many samples they hold at least and at most.
LOSSY: dict[str, tuple[Callable[[Path], object], int, int]] = {
    "mp3.wav": (_encoded("MPEG_LAYER_III", "MP3"), 20_000, 22_500),
    "a.ogg": (_encoded("VORBIS", "OGG"), 20_000, 20_000),
    "opus.ogg": (_encoded("OPUS", "OGG"), 60_000, 61_000),  # which is always at 48 kHz
    "chained.ogg": (_chained, 39_000, 42_000),
    "cut.mp3": (_cut(0.5, "MP3"), 25_000, 35_000),
    "cut.ogg": (_cut(0.5, "OGG"), 10_000, 45_000),
    "cover.mp3": (_with_cover, 32_000, 34_500),
    "a.m4a": (lambda path: shutil.copy(make_video(path.with_suffix(".mp4"), tone(1.0)), path), 44_100, 44_100),
}
# Files that cannot, with words of the sentence about them.
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.wav": (_bytes(b""), "it is empty"),
    "text.wav": (_bytes(b"no sound\n" * 99), "cannot be decoded"),
    "random.mp3": (_bytes(np.random.default_rng(0).bytes(9_999)), "decoded"),
    "none.wav": (lambda path: write(path, noise(0)), "no audio could be decoded"),
    "nan.wav": (_bad_sample(np.nan), "NaN or infinity"),
    "inf.wav": (_bad_sample(np.inf), "NaN or infinity"),
    "cut.wav": (_cut(0.4, "WAV"), "it ends in the middle"),
    "cut.flac": (_cut(0.5, "FLAC"), "damaged|it ends after|cannot be decoded"),
    "mute.mp4": (lambda path: make_video(path, None, grey_pictures(20)), "no audio stream"),
    "folder.wav": (lambda path: path.mkdir(), "a folder"),
    "gone.wav": (lambda path: None, "no such file"),
    "pipe.wav": (os.mkfifo, "a pipe"),
    "ten-hours.wav": (_sparse_hours, "36000 s, above 3600 s; cut it into shorter files, or allow it by --max-hours"),
}


@pytest.fixture(scope="module")
def separator(trained) -> Separator:
    return clipsep_jax.load(trained)


def separate(separator: Separator, path: Path, out: Path) -> tuple[np.ndarray, int]:
    """The stem and the residual of a file, added up."""
    job = Job(
        (Target((np.ones(QUERY_SIZE, np.float32),), name="q"),),
        out,
        form=StemFormat(bits="float"),
        residual=True,
        max_seconds=3_600,
    )
    separated = separate_file(separator, Recording(path, PurePath(path.stem)), job)
    (stem, rate), (residual, _) = map(read_sound, separated.paths)
    for written in separated.paths:
        written.unlink()
    return stem + residual, rate


def prepares(path: Path) -> bool:
    """Whether prepare can read a file, though it may find it too short or silent for training."""
    outcome = read_audio(Input(path.name, path, "", "train"))
    return not isinstance(outcome, Rejection) or outcome.reason in ("too_short", "silent")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_odd_sounds_are_separated_to_the_sample(separator, tmp_path, name):
    path = tmp_path / name
    sound = EXACT[name](path)
    rate = soundfile.info(os.fsencode(path)).samplerate if not name.startswith("piped") else 16_000
    together, found_rate = separate(separator, path, tmp_path / "out")
    assert found_rate == rate
    assert together.shape == sound.shape
    step = {"ULAW": 0.02, "ALAW": 0.02, "PCM_U8": 2**-7}.get(path.stem, 2**-15)
    np.testing.assert_allclose(together, sound, atol=1.1 * step)
    assert prepares(path)


@pytest.mark.slow
def test_sound_that_begins_late_is_separated_to_its_end(separator, tmp_path):
    sound = _late(tmp_path / "late.mov")
    together, _ = separate(separator, tmp_path / "late.mov", tmp_path / "out")
    assert together.shape[-1] == 48_000 + 7_200  # though the file declares 0.999 s
    np.testing.assert_allclose(together[:, -48_000:], sound, atol=2**-14)
    assert not together[:, :7_200].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSY)
def test_odd_compressed_sounds_are_separated_whole(separator, tmp_path, name):
    make, least, most = LOSSY[name]
    make(tmp_path / name)
    together, _ = separate(separator, tmp_path / name, tmp_path / "out")
    assert least <= together.shape[-1] <= most
    np.testing.assert_allclose(together, read_sound(tmp_path / name)[0], atol=1e-6)
    assert prepares(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_told_in_one_sentence(separator, tmp_path, name):
    make, words = REFUSED[name]
    make(tmp_path / name)
    with pytest.raises(InputError, match=words) as raised:
        separate(separator, tmp_path / name, tmp_path / "out")
    assert str(raised.value).startswith(f"{tmp_path / name} cannot be read as sound: ")
    assert str(raised.value).count(". ") == 0
    assert not list(tmp_path.glob("out/*"))
    assert not prepares(tmp_path / name)


@pytest.mark.slow
def test_separate_reads_what_prepare_reads(separator, tmp_path):
    """Cut, hostile, lacking, odd: the files that prepare is tested with."""
    reasons = make_corpus(tmp_path, "http://127.0.0.1:9")
    assert len(reasons) > 45
    for name in reasons:
        if prepares(tmp_path / name):
            separate(separator, tmp_path / name, tmp_path / "out")
        else:
            with pytest.raises(InputError, match=re.escape(str(tmp_path / name))):
                separate(separator, tmp_path / name, tmp_path / "out")
