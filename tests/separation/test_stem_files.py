"""The files of stems: what is too loud for them, what they cannot hold, and that there are all or none."""

from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile

from clipsep_jax.errors import InputError
from clipsep_jax.separation.stem_files import StemFiles, StemFormat
from tests.separation.inputs import noise
from tests.sounds import read_sound


def write_stems(tmp_path: Path, form: StemFormat, *, loudest: float) -> tuple[StemFiles, list[np.ndarray]]:
    """Two stems, of which the second exceeds full scale in its second block."""
    sounds = [scipy.signal.lfilter([0.2], [1, -0.9], noise(2, 6_000, level=0.3)).astype(np.float32) for _ in range(2)]
    sounds[1][0, 4_000] = loudest
    paths = [tmp_path / f"{n}.{form.name}" for n in range(2)]
    with StemFiles(paths, 44_100, 2, form, None) as files:
        for start in range(0, 6_000, 2_000):
            files.write([sound[:, start : start + 2_000] for sound in sounds])
        files.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in paths]
    return files, sounds


@pytest.mark.parametrize("form", [StemFormat(), StemFormat("flac", "24"), StemFormat("wav", "24")])
def test_loud_stems_are_scaled_together(tmp_path, form):
    files, sounds = write_stems(tmp_path, form, loudest=2.5)
    assert files.gain == 0.4
    assert files.as_float == ()
    for number, sound in enumerate(sounds):
        path = tmp_path / f"{number}.{form.name}"
        assert soundfile.info(path).subtype == f"PCM_{form.bits}"
        np.testing.assert_allclose(read_sound(path)[0], 0.4 * sound, atol=2**-14)


def test_a_loud_stem_alone_becomes_floats(tmp_path):
    files, sounds = write_stems(tmp_path, StemFormat(clip="float"), loudest=2.5)
    assert files.gain == 1
    assert files.as_float == (tmp_path / "1.wav",)
    assert [soundfile.info(tmp_path / f"{n}.wav").subtype for n in range(2)] == ["PCM_16", "FLOAT"]
    for number, sound in enumerate(sounds):
        np.testing.assert_allclose(read_sound(tmp_path / f"{number}.wav")[0], sound, atol=2**-15)


def test_floats_stay_as_loud_as_they_are(tmp_path):
    files, sounds = write_stems(tmp_path, StemFormat("wav", "float"), loudest=2.5)
    assert files.gain == 1
    np.testing.assert_array_equal(read_sound(tmp_path / "1.wav")[0], sounds[1])


@pytest.mark.parametrize("name", ["mp3", "ogg", "m4a"])
def test_loud_stems_of_lossy_formats_are_scaled(tmp_path, name):
    files, sounds = write_stems(tmp_path, StemFormat(name), loudest=2.0)
    assert files.gain == 0.5
    found = read_sound(tmp_path / f"0.{name}")[0][:, :6_000]
    assert np.mean((found - 0.5 * sounds[0][:, : found.shape[-1]]) ** 2) < 0.1 * np.mean((0.5 * sounds[0]) ** 2)


def test_formats_refuse_what_they_cannot_hold():
    for make, words in (
        (lambda: StemFormat("flac", "float"), "16 or 24 bits"),
        (lambda: StemFormat("flac", clip="float"), "do not hold floats"),
        (lambda: StemFormat("mp3", "float"), "no number of bits"),
        (lambda: StemFormat("mp3").check(44_100, 3), "at most 2 channels"),
        (lambda: StemFormat("m4a").check(192_000, 1), "do not hold 192000 Hz"),
    ):
        with pytest.raises(InputError, match=words):
            make()


def test_files_that_cannot_be_opened_leave_none_behind(tmp_path):
    with pytest.raises(OSError, match="b"):
        StemFiles([tmp_path / "a.wav", tmp_path / "none" / "b.wav"], 16_000, 1, StemFormat(), None)
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_no_file(tmp_path):
    def write_one():
        with StemFiles([tmp_path / "a.wav"], 16_000, 1, StemFormat(), None) as files:
            files.write([noise(1, 2_000, level=0.3)])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_one()
    assert not list(tmp_path.iterdir())
