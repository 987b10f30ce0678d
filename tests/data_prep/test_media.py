import os
import struct
from pathlib import Path

import numpy as np
import pytest

from clipsep_jax.data.record import Record, decode_frame
from clipsep_jax.data_prep.decode import limits, media
from clipsep_jax.data_prep.ledger import Rejection
from clipsep_jax.data_prep.sources.inputs import Input, Segment
from clipsep_jax.data_prep.sources.videos import read_video
from clipsep_jax.errors import InputError
from tests.data_prep.bad_files import PLAYLISTS, watched_file
from tests.data_prep.made_media import assert_same_sound, grey_pictures, make_video, sweep, tone
from tests.sounds import read_sound


def outcome_of(path: Path, segment: Segment | None = None) -> Record | Rejection:
    return read_video(Input(path.name, path, "label", "train", segment))


def read(path: Path, segment: Segment | None = None) -> Record:
    outcome = outcome_of(path, segment)
    assert isinstance(outcome, Record), outcome
    return outcome


def refusal(path: Path, segment: Segment | None = None) -> Rejection:
    outcome = outcome_of(path, segment)
    assert isinstance(outcome, Rejection)
    return outcome


def expected_tone(num_samples: int, gain: float, delay: float = 0.0) -> np.ndarray:
    return gain * np.sin(2 * np.pi * 440 * (np.arange(num_samples) / 16_000 - delay))


@pytest.mark.parametrize(
    ("suffix", "codec", "rate", "gains", "tolerance"),
    [
        (".mp4", "aac", 44_100, (0.5, 0.3), 0.02),
        (".mp4", "aac", 48_000, (0.4,), 0.02),
        (".mkv", "pcm_u8", 8_000, (0.4,), 0.012),
        (".mkv", "pcm_f32le", 48_000, (0.6, 0.5, 0.4, 0.3, 0.2, 0.1), 1e-3),
        (".mkv", "flac", 96_000, (0.9, -0.1), 1e-3),
        (".mkv", "pcm_s16le", 16_000, (0.4,), 1e-4),
        (".avi", "pcm_s16le", 22_050, (0.4, 0.2), 1e-3),
        (".ts", "aac", 44_100, (0.5, 0.3), 0.02),
        (".webm", "libopus", 48_000, (0.4, 0.4), 0.03),
        (".flv", "aac", 44_100, (0.4,), 0.02),
    ],
)
def test_sound_of_any_rate_layout_and_format_becomes_mono_at_16_khz(tmp_path, suffix, codec, rate, gains, tolerance):
    path = tmp_path / f"clip{suffix}"
    make_video(path, tone(2.0, rate, gains=gains), grey_pictures(20), rate=rate, audio_codec=codec)
    record = read(path)
    assert record.audio.dtype == np.int16
    assert abs(len(record.audio) - 32_000) <= 2200  # codecs pad to whole frames; Matroska cannot say by how much
    middle = slice(4_000, 28_000)
    # MPEG-TS and FLV play the encoder's first frame too, and time 0 is where that begins.
    delay = 1024 / rate if suffix in (".ts", ".flv") else 0.0
    wanted = expected_tone(32_000, float(np.mean(gains)), delay)
    assert np.abs(record.audio[middle] / 32768 - wanted[middle]).max() < tolerance
    assert len(record.frames) == 2


def test_an_mpeg_program_stream_is_read(tmp_path):
    record = read(make_video(tmp_path / "clip.mpg", tone(2.0, gains=(0.4, 0.4)), grey_pictures(50), fps=25))
    assert abs(len(record.audio) - 32_000) < 1_000
    assert np.abs(record.audio[4_000:28_000]).max() / 32768 == pytest.approx(0.4, abs=0.01)
    assert len(record.frames) == 2


@pytest.mark.parametrize("fps", [10, 30])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_picture_i_is_the_one_shown_at_i_plus_a_half(tmp_path, suffix, fps):
    pictures = grey_pictures(30)
    pictures = np.repeat(pictures, 3, axis=0) if fps == 30 else pictures
    path = make_video(tmp_path / f"clip{suffix}", tone(3.0), pictures, fps=fps)
    levels = [decode_frame(jpeg).mean() for jpeg in read(path).frames]
    first = 4 if suffix == ".ts" else 5  # there the first picture comes 23 ms after the sound's start, time 0
    np.testing.assert_allclose(levels, [20 + 7 * (first + i) for i in (0, 10, 20)], atol=3.4)


@pytest.mark.parametrize(("seconds", "num_frames"), [(1.2, 1), (1.6, 2), (2.4, 2), (3.0, 3)])
def test_number_of_pictures_is_the_rounded_duration(tmp_path, seconds, num_frames):
    path = make_video(tmp_path / "clip.mkv", tone(seconds), grey_pictures(round(seconds * 10)))
    assert len(read(path).frames) == num_frames


@pytest.mark.parametrize(("audio_seconds", "num_pictures"), [(4.0, 20), (2.0, 40)])
def test_pictures_stop_with_the_shorter_stream(tmp_path, audio_seconds, num_pictures):
    path = make_video(tmp_path / "clip.mkv", tone(audio_seconds), grey_pictures(num_pictures))
    assert len(read(path).frames) == 2


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_late_sound_is_padded_and_late_pictures_are_shown_from_the_start(tmp_path, suffix):
    late_sound = make_video(tmp_path / f"a{suffix}", tone(2.0), grey_pictures(25), audio_start=0.5)
    audio = read(late_sound).audio / 32768
    onset = int(np.argmax(np.abs(audio) > 0.1))
    assert abs(onset - 8_000) <= 32  # containers round to a millisecond
    late_pictures = make_video(tmp_path / f"b{suffix}", tone(2.4), grey_pictures(14), picture_start=1.0)
    levels = [decode_frame(jpeg).mean() for jpeg in read(late_pictures).frames]
    np.testing.assert_allclose(levels, [20, 20 + 7 * (4 if suffix == ".ts" else 5)], atol=3.4)


def test_loud_float_sound_is_clipped_and_nan_is_refused(tmp_path):
    loud = tone(1.5, 16_000, gains=(2.0,))
    record = read(make_video(tmp_path / "a.mkv", loud, grey_pictures(15), rate=16_000, audio_codec="pcm_f32le"))
    assert (record.audio.max(), record.audio.min()) == (32767, -32768)
    loud[0, 5_000] = np.nan
    broken = make_video(tmp_path / "b.mkv", loud, grey_pictures(15), rate=16_000, audio_codec="pcm_f32le")
    assert refusal(broken) == Rejection("undecodable", "its audio holds NaN or infinity")


def test_a_rotated_video_is_turned_upright(tmp_path):
    pictures = np.full((12, 64, 64, 3), 220, np.uint8)
    pictures[:, :, :32] = 30  # dark on the left
    path = make_video(tmp_path / "clip.mp4", tone(1.2), pictures)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    upright = decode_frame(read(path).frames[0])  # a quarter turn clockwise: the left is on top
    assert upright[:100].mean() < 60
    assert upright[124:].mean() > 190


def test_each_reason_for_a_rejection(tmp_path, monkeypatch):
    pictures = grey_pictures(20)
    assert refusal(tmp_path / "none.mp4").reason == "missing"
    assert refusal(make_video(tmp_path / "mute.mp4", None, pictures)).reason == "no_audio"
    assert refusal(make_video(tmp_path / "blind.mp4", tone(2.0))).reason == "no_video"
    assert refusal(make_video(tmp_path / "zeros.mp4", np.zeros((1, 88_200), np.float32), pictures)).reason == "silent"
    faint = tone(2.0, 16_000, gains=(0.0009,))
    assert refusal(make_video(tmp_path / "faint.mkv", faint, pictures, rate=16_000)).reason == "silent"
    soft = tone(2.0, 16_000, gains=(0.0011,))
    assert len(read(make_video(tmp_path / "soft.mkv", soft, pictures, rate=16_000)).frames) == 2
    assert refusal(make_video(tmp_path / "short.mkv", tone(0.9), pictures)).reason == "too_short"
    good = make_video(tmp_path / "good.mp4", tone(2.0), pictures)
    for name, limit in {"MAX_FILE_BYTES": 1000, "MAX_SECONDS": 1, "MAX_PIXELS": 64 * 47}.items():
        with monkeypatch.context() as patch:
            patch.setattr(limits, name, limit)
            assert refusal(good).reason == "oversize", name
    assert isinstance(outcome_of(good), Record)


def test_pictures_above_the_limit_are_never_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_PIXELS", 64 * 47)
    for suffix in (".mkv", ".avi"):  # FFmpeg itself refuses to decode these, and does not tell their size
        path = make_video(tmp_path / f"clip{suffix}", tone(2.0), grey_pictures(20))
        assert refusal(path) == Rejection("undecodable", "its pictures are of unknown size, or above 3008 pixels")


def test_bytes_that_are_no_video_are_undecodable_without_noise(tmp_path, capfd):
    text = tmp_path / "notes.mp4"
    text.write_text("This is not a video.\n" * 50)
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (text, tmp_path / "empty.mp4", tmp_path / "pipe.mp4"):
        assert refusal(path).reason == "undecodable"
        assert refusal(path).detail
        assert str(tmp_path) not in refusal(path).detail
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.8])
def test_a_truncated_file_is_undecodable(tmp_path, options, kept):
    noise = np.random.default_rng(0).normal(0, 0.1, (1, 132_300)).astype(np.float32)
    path = make_video(tmp_path / "clip.mp4", noise, grey_pictures(30), options=options)
    assert isinstance(outcome_of(path), Record)
    os.truncate(path, int(path.stat().st_size * kept))
    assert refusal(path).reason == "undecodable"
    with pytest.raises(InputError, match=r"clip\.mp4"):
        read_sound(path)


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_under_a_videos_name_is_refused_and_opens_nothing(tmp_path, kind):
    target = tmp_path / "secret.ts"
    make_video(target, tone(2.0), grey_pictures(20))
    playlist = tmp_path / "clip.mp4"
    playlist.write_text(PLAYLISTS[kind].format(target.name))
    assert refusal(playlist).reason == "undecodable"
    target.unlink()
    with watched_file(target) as opened:
        assert refusal(playlist).reason == "undecodable"
        assert not opened.wait(0.1)


def test_without_the_guard_a_playlist_would_be_followed(tmp_path):
    import av

    make_video(tmp_path / "secret.ts", tone(2.0), grey_pictures(20))
    playlist = tmp_path / "clip.mp4"
    playlist.write_text(PLAYLISTS["ffconcat"].format("secret.ts"))
    with av.open(str(playlist)) as container:
        assert container.streams.audio


def test_still_pictures_are_flagged_and_refused_on_request(tmp_path):
    noise = np.random.default_rng(0).integers(60, 200, (1, 96, 128, 3), dtype=np.uint8)
    still = make_video(tmp_path / "still.mp4", tone(2.0), np.repeat(noise, 20, axis=0))
    moving = make_video(tmp_path / "moving.mp4", tone(2.0), grey_pictures(20))
    last = np.repeat(noise, 20, axis=0)
    last[-1, 40:56, 40:56] = 255
    at_the_end = make_video(tmp_path / "at the end.mp4", tone(2.0), last)
    assert [read(path).still_picture for path in (still, moving, at_the_end)] == [True, False, False]
    source = Input("still.mp4", still, "", "train")
    assert read_video(source, reject_still=True) == Rejection("still_picture", "all its pictures are the same")
    assert isinstance(read_video(Input("moving.mp4", moving, "", "train"), reject_still=True), Record)


@pytest.mark.slow
@pytest.mark.parametrize("gop_size", [7, 50, 500])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".flv", ".webm"])
def test_a_segment_is_what_the_whole_video_holds_there(tmp_path, suffix, gop_size):
    path = make_video(tmp_path / f"clip{suffix}", sweep(16), grey_pictures(160) // 3, rate=48_000, gop_size=gop_size)
    whole = read(path)
    for start in (1, 5, 12):
        part = read(path, Segment(float(start), 3.0))
        assert len(part.audio) == 48_000
        assert part.frames == whole.frames[start : start + 3]
        assert_same_sound(part.audio, whole.audio, 16_000 * start)


@pytest.mark.slow
@pytest.mark.parametrize("lag", [1.5, 3.0])
def test_a_segment_is_whole_where_the_streams_are_loosely_interleaved(tmp_path, lag):
    path = make_video(tmp_path / "clip.mkv", sweep(16), grey_pictures(160) // 3, rate=48_000, lag=lag)
    whole, part = read(path), read(path, Segment(4.0, 6.0))
    assert part.frames == whole.frames[4:10]
    assert len(part.audio) == 96_000
    assert_same_sound(part.audio, whole.audio, 64_000)


def test_a_segment_that_seeking_would_miss_is_found_from_the_start(tmp_path, monkeypatch):
    path = make_video(tmp_path / "clip.mkv", sweep(6), grey_pictures(60), rate=48_000)
    whole, seeks = read(path), []

    def too_far(container, start):
        seeks.append(start)
        container.seek(5_000_000)

    monkeypatch.setattr(media, "_seek", too_far)
    found = read(path, Segment(2.0, 3.0))
    assert seeks == [2]
    assert found.frames == whole.frames[2:5]
    assert_same_sound(found.audio, whole.audio, 32_000)


def test_a_segment_at_the_end_is_shorter_and_behind_it_there_is_none(tmp_path):
    path = make_video(tmp_path / "clip.mkv", tone(6.0), grey_pictures(60))
    assert abs(len(read(path, Segment(4.0, 3.0)).audio) - 32_000) <= 16
    assert refusal(path, Segment(5.5, 3.0)).reason == "too_short"
    behind = refusal(path, Segment(7.0, 3.0))
    assert (behind.reason, behind.detail) == ("too_short", "it ends after 6.00 s, before its clip begins at 7 s")


def test_a_file_that_is_not_longer_than_the_segment_is_the_segment(tmp_path):
    path = make_video(tmp_path / "clip.mkv", tone(3.2), grey_pictures(32))
    np.testing.assert_array_equal(read(path, Segment(30.0, 3.0)).audio, read(path).audio)
