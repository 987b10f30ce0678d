import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr

from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.ledger import Rejection
from clipsep_jax.data_prep.sources.audio import read_audio
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.data_prep.sources.videos import read_video
from clipsep_jax.errors import InputError
from clipsep_jax.sound_files import write_sound
from tests.data_prep.made_media import grey_pictures, make_video, tone
from tests.sounds import read_sound


def test_the_sound_of_a_video_alone(tmp_path):
    both = make_video(tmp_path / "a.mp4", tone(2.0), grey_pictures(20))
    record = read_video(Input("a.mp4", both, "", "train"))
    assert isinstance(record, Record), record
    sound, rate_hz = read_sound(both)
    assert sound.dtype == np.float32
    at_16_khz = soxr.resample(sound.mean(axis=0), rate_hz, 16_000)
    assert len(at_16_khz) == 32_000  # without what the codec adds to fill its last block
    np.testing.assert_allclose(at_16_khz[100:-100], record.audio[100:31_900] / 32768, atol=2e-3)
    bare = make_video(tmp_path / "b.mkv", tone(0.5, 16_000, gains=(0.4,)), rate=16_000)
    wanted = 0.4 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 16_000)
    np.testing.assert_allclose(read_sound(bare)[0][0], wanted, atol=1e-4)


def test_a_video_without_usable_sound_is_an_input_error(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    mute = make_video(tmp_path / "mute.mp4", None, grey_pictures(20))
    for path, words in (
        (tmp_path / "gone.mp4", "no such file"),
        (mute, "no audio"),
        (tmp_path / "text.mp4", "decoded"),
    ):
        with pytest.raises(InputError, match=f"{path.name}.*{words}"):
            read_sound(path)


@pytest.mark.parametrize("name", ["a.wav", "a.mka"])
def test_separate_and_prepare_refuse_a_file_in_the_same_words(tmp_path, name):
    def refuses(reason: str, detail: str) -> str:
        with pytest.raises(InputError) as raised:
            read_sound(tmp_path / name)
        told, advice = str(raised.value).rsplit("; ", 1)
        assert told == f"{tmp_path / name} cannot be read as sound: {detail}"
        assert read_audio(Input(name, tmp_path / name, "", "train")) == Rejection(reason, detail)
        return advice

    assert refuses("missing", "there is no such file") == "give a sound or video file."
    (tmp_path / name).mkdir()
    assert refuses("undecodable", "it is a folder, a pipe or a device") == "give a sound or video file."
    (tmp_path / name).rmdir()
    loud = tone(1.5, 16_000, gains=(0.5,))
    loud[0, 5_000] = np.nan
    soundfile.write(tmp_path / name, loud[0], 16_000, "FLOAT", format="WAV")
    assert refuses("undecodable", "its audio holds NaN or infinity") == "export it again, as WAV or MP4."


@pytest.mark.parametrize(
    ("rate_hz", "num_channels"), [(44_100, 2), (8_000, 1), (96_000, 8), (192_000, 3), (16_000, 64)]
)
def test_rate_and_channels_stay(tmp_path, rate_hz, num_channels):
    noise = np.random.default_rng(0).uniform(-2, 2, (2 * rate_hz, num_channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise, rate_hz, "FLOAT")
    sound, rate = read_sound(tmp_path / "a.wav")
    assert rate == rate_hz
    np.testing.assert_array_equal(sound, noise.T)
    record = read_audio(Input("a.wav", tmp_path / "a.wav", "", "train"))
    assert isinstance(record, Record), record
    assert len(record.audio) == pytest.approx(32_000, abs=1)


@pytest.mark.parametrize(("subtype", "step"), [("PCM_16", 2**-15), ("PCM_24", 2**-23), ("DOUBLE", 2**-24)])
def test_no_bit_of_a_sample_is_lost(tmp_path, subtype, step):
    noise = np.random.default_rng(0).uniform(-1, 1, 20_000)
    soundfile.write(tmp_path / "a.wav", noise, 22_050, subtype)
    np.testing.assert_allclose(read_sound(tmp_path / "a.wav")[0][0], noise, atol=step)


def _flac_claiming(path, num_samples: int):
    """A second of sound under a header that claims more."""
    soundfile.write(path, tone(1.0, 16_000, gains=(0.5,))[0], 16_000)
    data = bytearray(path.read_bytes())
    data[21] = (data[21] & 0xF0) | num_samples >> 32
    data[22:26] = (num_samples & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)


def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path):
    _flac_claiming(tmp_path / "a.flac", 2**36 - 1)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.flac cannot be read as sound: .* s, above"):
        read_sound(tmp_path / "a.flac")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.flac", "a.mka"])
def test_a_small_file_of_much_silence_is_refused_before_it_fills_the_memory(tmp_path, name):
    with soundfile.SoundFile(tmp_path / name, "w", 48_000, 8, "PCM_16", format="FLAC") as file:
        for _ in range(100):
            file.write(np.zeros((48_000, 8), np.int16))
    assert (tmp_path / name).stat().st_size < 300_000
    tracemalloc.start()
    with pytest.raises(InputError, match=f"{name}.* s, above 60 s; cut it into shorter files, or .* --max-hours"):
        read_sound(tmp_path / name, max_seconds=60)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.wav", "a.mka"])
@pytest.mark.parametrize(
    ("rate_hz", "num_channels", "words"),
    [(1, 1, "its sample rate is 1 Hz, not from 1000 to 768000 Hz"), (16_000, 65, "65 channels, above 64")],
)
def test_a_format_that_no_recording_has_is_refused(tmp_path, name, rate_hz, num_channels, words):
    soundfile.write(tmp_path / name, np.zeros((1_600, num_channels), np.int16), rate_hz, format="WAV")
    with pytest.raises(InputError, match=f"{name}.*({words}|decoded)"):
        read_sound(tmp_path / name)


@pytest.mark.parametrize("kind", ["MAT5", "HTK", "IRCAM"])
def test_a_format_outside_of_the_list_is_refused_whatever_its_name(tmp_path, kind):
    soundfile.write(tmp_path / "a.wav", np.zeros(1_600, np.int16), 16_000, format=kind)
    with pytest.raises(InputError, match=r"a\.wav cannot be read as sound: it cannot be decoded"):
        read_sound(tmp_path / "a.wav")


def test_a_sound_that_is_written_comes_back_clipped(tmp_path):
    write_sound(tmp_path / "a.wav", np.array([0.5, -2.0, 2.0], np.float32), 16_000)
    np.testing.assert_allclose(read_sound(tmp_path / "a.wav")[0][0], [0.5, -1.0, 1.0], atol=1e-4)


def _mp3(path, frequency: float, rate_hz: int) -> bytes:
    soundfile.write(path, tone(1.0, rate_hz, hz=frequency, gains=(0.5,))[0], rate_hz)
    return path.read_bytes()


@pytest.mark.parametrize("between", [b"", b"ID3\x03\x00\x00\x00\x00\x00\x0aTIT2" + bytes(6)])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_recordings_put_together_are_read_to_the_end(tmp_path, rate_hz, between):
    parts = _mp3(tmp_path / "a.mp3", 440, 16_000), _mp3(tmp_path / "b.mp3", 880, rate_hz)
    (tmp_path / "both.mp3").write_bytes(between.join(parts))
    (sound,), rate = read_sound(tmp_path / "both.mp3")
    assert rate == 16_000
    assert abs(len(sound) - 32_000) < 6_000  # mp3 pads each part
    for part, frequency in ((sound[4_000:12_000], 440), (sound[-12_000:-4_000], 880)):
        spectrum = np.abs(np.fft.rfft(part * np.hanning(8_000)))
        assert abs(2 * spectrum.argmax() - frequency) <= 4


def test_a_recording_that_is_damaged_in_the_middle_is_refused(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * 16_000)
    soundfile.write(tmp_path / "a.mp3", noise, 16_000)
    data = bytearray((tmp_path / "a.mp3").read_bytes())
    middle = slice(len(data) // 4, 3 * len(data) // 4)
    data[middle] = np.random.default_rng(1).bytes(middle.stop - middle.start)
    (tmp_path / "a.mp3").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.mp3 cannot be read as sound: it cannot be decoded"):
        read_sound(tmp_path / "a.mp3")


def test_speech_of_telephones_is_read(tmp_path):
    (tmp_path / "a.amr").write_bytes(b"#!AMR\n" + (b"\x3c" + bytes(31)) * 100)
    assert read_sound(tmp_path / "a.amr")[0].shape == (1, 16_000)
    assert len(read_audio(Input("a.amr", tmp_path / "a.amr", "", "train")).audio) == 32_000


@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.mp4", "a.amr"])
@pytest.mark.parametrize("content", [b"", b"ID3\x03\x00\x00\x00\x00\x00\x00", b"#!AMR\n", b"RIFF"])
def test_a_file_of_no_sound_is_refused_without_a_word_of_others(tmp_path, name, content, capfd):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} cannot be read as sound"):
        read_sound(tmp_path / name)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.wav", "a.mka"])
def test_channels_that_cancel_each_other_are_told_by_prepare_alone(tmp_path, name):
    left = tone(1.5, 16_000, gains=(0.5,))[0]
    soundfile.write(tmp_path / name, np.stack([left, -left], axis=1), 16_000, format="WAV")
    told = read_audio(Input(name, tmp_path / name, "", "train"))
    assert told.reason == "silent"
    assert told.detail.endswith("dBFS: its channels cancel each other out")
    sound, _ = read_sound(tmp_path / name)
    np.testing.assert_allclose(sound, [left, -left], atol=1e-4)
