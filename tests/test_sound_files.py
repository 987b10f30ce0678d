import numpy as np
import pytest
import soundfile

from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.ledger import Rejection
from clipsep_jax.data_prep.sources.audio import read_audio
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.data_prep.sources.videos import read_video
from clipsep_jax.errors import InputError
from clipsep_jax.sound_files import read_sound, write_sound
from tests.data_prep.made_media import grey_pictures, make_video, tone


def test_the_sound_of_a_video_alone(tmp_path):
    both = make_video(tmp_path / "a.mp4", tone(2.0), grey_pictures(20))
    record = read_video(Input("a.mp4", both, "", "train"))
    assert isinstance(record, Record), record
    sound = read_sound(both)
    assert sound.dtype == np.float32
    np.testing.assert_array_equal(np.rint(sound * 32768).astype(np.int16), record.audio)
    bare = make_video(tmp_path / "b.mkv", tone(0.5, 16_000, gains=(0.4,)), rate=16_000)
    wanted = 0.4 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 16_000)
    np.testing.assert_allclose(read_sound(bare), wanted, atol=1e-4)


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
def test_both_decoders_and_prepare_refuse_a_file_in_the_same_words(tmp_path, name):
    def refuses(reason: str, detail: str) -> str:
        with pytest.raises(InputError) as raised:
            read_sound(tmp_path / name)
        told, advice = str(raised.value).rsplit("; ", 1)
        assert told == f"{tmp_path / name} cannot be read as sound: {detail}"
        assert read_audio(Input(name, tmp_path / name, "", "train")) == Rejection(reason, detail)
        return advice

    assert refuses("missing", "there is no such file") == "give a sound or video file."
    (tmp_path / name).mkdir()
    assert refuses("undecodable", "it is not a regular file") == "export it again, as WAV or MP4."
    (tmp_path / name).rmdir()
    loud = tone(1.5, 16_000, gains=(0.5,))
    loud[0, 5_000] = np.nan
    soundfile.write(tmp_path / name, loud[0], 16_000, "FLOAT", format="WAV")
    assert refuses("undecodable", "its audio holds NaN or infinity") == "export it again, as WAV or MP4."


def test_channels_are_averaged_and_other_rates_resampled(tmp_path):
    stereo = tone(1.0, 44_100, gains=(0.5, 0.3))
    soundfile.write(tmp_path / "a.wav", stereo.T, 44_100, "FLOAT")
    sound = read_sound(tmp_path / "a.wav")
    assert sound.dtype == np.float32
    wanted = 0.4 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(sound[200:-200], wanted[200:-200], atol=2e-3)


def test_a_sound_that_is_written_comes_back_clipped(tmp_path):
    write_sound(tmp_path / "a.wav", np.array([0.5, -2.0, 2.0], np.float32), 16_000)
    np.testing.assert_allclose(read_sound(tmp_path / "a.wav"), [0.5, -1.0, 1.0], atol=1e-4)
