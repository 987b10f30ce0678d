"""Recordings into files: which are found, what their stems are called, formats, and what goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path, PurePath

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

import clipsep_jax
from clipsep_jax.cli.main import main
from clipsep_jax.errors import InputError
from clipsep_jax.separation import overview as overview_module
from clipsep_jax.separation.ahead import ahead
from clipsep_jax.separation.files import Recording, find_recordings, output_paths
from clipsep_jax.separation.job import Job, separate_file
from clipsep_jax.separation.overview import Overview
from clipsep_jax.separation.stem_files import StemFormat
from clipsep_jax.separation.targets import Target, read_targets
from tests.data_prep.made_media import grey_pictures, make_video, tone
from tests.separation.inputs import noise
from tests.small import QUERY_SIZE
from tests.sounds import read_sound


@pytest.fixture
def folder(tmp_path) -> Path:
    """Recordings, some of which have the same names, and what is none."""
    place = tmp_path / "in"
    (place / "deep").mkdir(parents=True)
    for name in ("x.wav", "x.flac", "y.wav", "deep/x.wav"):
        soundfile.write(place / name, noise(5_000, level=0.3), 16_000)
    (place / "notes.txt").write_text("no sound")
    return place


def command(folder: object, out: Path, model: Path, *more: str) -> int:
    return main(["separate", str(folder), "--model", str(model), "--query", "buzz", "--out", str(out), *more])


def test_folders_patterns_and_lists_are_found(folder, tmp_path):
    names = {str(recording.name) for recording in find_recordings([str(folder)])}
    assert names == {"x-wav", "x-flac", "y", "deep/x"}
    pattern = find_recordings([str(folder / "*.wav")])
    assert [recording.path.name for recording in pattern] == ["x.wav", "y.wav"]
    (tmp_path / "list").write_text(f"{folder / 'y.wav'}\n\n{folder / 'y.wav'}\n{folder / 'x.flac'}\n")
    assert [recording.path.name for recording in find_recordings([], tmp_path / "list")] == ["y.wav", "x.flac"]
    assert [str(r.name) for r in find_recordings([str(folder / "x.wav"), str(folder / "deep/x.wav")])] == [
        "x-wav",
        "x-wav_2",
    ]
    for nothing in ([], [str(tmp_path / "*.ogg")], [str(folder / "deep" / "none*")]):
        with pytest.raises(InputError, match="no recording to separate"):
            find_recordings(nothing)


def test_results_within_the_inputs_are_no_inputs(folder, tmp_path):
    (folder / "out").mkdir()
    soundfile.write(folder / "out" / "x_buzz.wav", noise(100, level=0.3), 16_000)
    names = {str(recording.name) for recording in find_recordings([str(folder)], None, folder / "out")}
    assert names == {"x-wav", "x-flac", "y", "deep/x"}


def test_results_among_the_inputs_are_refused(folder, trained, capsys):
    before = sorted(folder.rglob("*"))
    assert command(folder, folder / "deep" / "..", trained) == 2
    assert "would be recordings of the next run; give a folder of their own" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_names_that_are_cut_to_the_same_are_refused(tmp_path, trained, capsys):
    for end in "12":
        soundfile.write(tmp_path / f"{'n' * 230}{end}.wav", noise(100, level=0.3), 16_000)
    assert command(tmp_path / "*.wav", tmp_path / "out", trained) == 2
    assert "Two recordings would give the same file" in capsys.readouterr().err


def test_too_few_samples_for_a_rate_are_told(tmp_path, trained, capsys):
    soundfile.write(tmp_path / "a.wav", noise(1, level=0.3), 192_000)
    assert command(tmp_path / "a.wav", tmp_path / "out", trained, "--rate", "1000") == 2
    assert "a.wav holds less than one sample at 1000 Hz" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_outputs_never_overwrite_each_other():
    paths = output_paths(Path("out"), PurePath("a"), ["residual", "drum", "drum!", "ü" * 300, "?", "residual"], "wav")
    assert len(set(paths)) == 6
    assert paths[1] == Path("out/a_drum_2.wav")
    for name in ("n" * 250, "ü" * 125, os.fsdecode(b"\xff" * 250)):
        (path,) = output_paths(Path("out"), PurePath(name), ["q" * 300], "flac")
        assert len(os.fsencode(path.name)) + 48 <= 255


def test_a_folder_becomes_files_and_is_not_done_twice(folder, tmp_path, trained, capsys):
    out = tmp_path / "out"
    (folder / "deep" / "bad.wav").write_bytes(b"RIFF")
    assert command(folder, out, trained) == 1
    told = capsys.readouterr()
    wanted = {out / name for name in ("x-wav_buzz.wav", "x-flac_buzz.wav", "y_buzz.wav", "deep/x_buzz.wav")}
    assert {Path(line) for line in told.out.split()} == wanted == {path for path in out.rglob("*") if path.is_file()}
    assert told.err.count("cannot be read as sound") == 1
    assert told.err.strip().endswith(f"Separated 4 of 5 recordings into {out}.")
    (folder / "deep" / "bad.wav").unlink()

    assert command(folder, out, trained) == 2
    assert "_buzz.wav and 3 more are there already; give --skip-existing" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in wanted}
    (out / "y_buzz.wav").unlink()
    assert command(folder, out, trained, "--skip-existing") == 0
    told = capsys.readouterr()
    assert told.out.split() == [str(out / "y_buzz.wav")]
    assert "3 recordings are separated already." in told.err
    assert all(path.stat().st_mtime_ns == before[path] for path in wanted - {out / "y_buzz.wav"})
    assert command(folder, out, trained, "--overwrite") == 0
    assert all(path.stat().st_mtime_ns != before[path] for path in wanted)


def test_what_was_done_is_told_as_json(folder, tmp_path, trained, capsys):
    assert command(folder / "y.wav", tmp_path / "out", trained, "--json", "--residual") == 0
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["recording"] == str(folder / "y.wav")
    assert told["paths"] == [str(tmp_path / "out" / f"y_{name}.wav") for name in ("buzz", "residual")]
    assert (told["seconds"], told["rate_hz"], told["num_channels"], told["gain"]) == (5_000 / 16_000, 16_000, 1, 1.0)


@pytest.mark.parametrize(
    ("name", "bits", "rate", "channels", "error"),
    [
        ("wav", "16", 44_100, 2, 2**-15),
        ("wav", "24", 22_050, 3, 2**-22),
        ("wav", "float", 48_000, 1, 1e-6),
        ("flac", "24", 44_100, 2, 2**-22),
        ("mp3", "16", 44_100, 2, None),
        ("ogg", "16", 16_000, 1, None),
        ("m4a", "16", 48_000, 2, None),
    ],
)
def test_stems_keep_rate_channels_and_length_in_every_format(tmp_path, trained, name, bits, rate, channels, error):
    waveform = 0.2 * np.stack([np.sin(2 * np.pi * 200 * (n + 1) * np.arange(rate) / rate) for n in range(channels)])
    soundfile.write(tmp_path / "a.wav", waveform.T, rate, "FLOAT")
    separator = clipsep_jax.load(trained)
    query = np.ones(QUERY_SIZE, np.float32)
    job = Job((Target((query,), name="q"),), tmp_path, form=StemFormat(name, bits), residual=True)
    separated = separate_file(separator, Recording(tmp_path / "a.wav", PurePath("a")), job)
    expected = separator.separate(waveform.astype(np.float32), [query], rate=rate)
    for path, sound in zip(separated.paths, (expected.stems[0], expected.residual), strict=True):
        assert path.suffix == f".{name}"
        found, found_rate = read_sound(path)
        assert found_rate == rate
        if error:
            assert found.shape == sound.shape
            np.testing.assert_allclose(found, sound, atol=error)
        else:  # lossy: the sound is there, in place
            assert len(found) == channels
            assert abs(found.shape[-1] - rate) <= 2_304
            length = min(found.shape[-1], rate)
            difference = found[:, :length] - sound[:, :length]
            assert np.mean(difference**2) < 0.1 * np.mean(sound**2)
    assert (separated.seconds, separated.rate_hz, separated.num_channels) == (1.0, rate, channels)


@pytest.mark.slow
def test_a_full_disk_is_told_and_nothing_is_left(tmp_path, trained):
    """A limit on the size of files stands for the disk."""
    soundfile.write(tmp_path / "a.wav", noise(2, 100_000, level=0.3).T, 44_100)
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from clipsep_jax.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        f"sys.exit(main(['separate', {str(tmp_path / 'a.wav')!r}, '--model', {str(trained)!r}, '--query', 'buzz', "
        f"'--out', {str(tmp_path / 'out')!r}]))"
    )
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1, done.stderr
    assert "a_buzz.wav" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_an_interrupted_separation_leaves_no_file(tmp_path, trained):
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 16_000, 1) as file:
        for _ in range(120):
            file.write(noise(160_000, level=0.3))
    out = tmp_path / "out"
    arguments = ["separate", str(tmp_path / "a.wav"), "--model", str(trained), "--query", "buzz", "--out", str(out)]
    code = (
        "import signal, sys; from clipsep_jax.cli.main import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells ignore in the background\n"
        f"sys.exit(main({arguments}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as running:
        try:
            deadline = time.monotonic() + 120
            while not list(out.glob("*.partial")) and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)
            running.send_signal(signal.SIGINT)
            _, told = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130
    assert "Traceback" not in told
    assert not list(out.iterdir())


def test_a_video_is_separated_in_place(tmp_path, trained, capsys):
    """Sound that begins after the pictures gets zeros before it."""
    path = make_video(tmp_path / "v.mp4", tone(2.0), grey_pictures(20))
    assert command(path, tmp_path / "out", trained) == 0
    capsys.readouterr()
    assert read_sound(tmp_path / "out" / "v_buzz.wav")[0].shape == read_sound(path)[0].shape


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(container.streams.video[0])])


@pytest.mark.parametrize(("name", "suffix"), [("v.mp4", "mp4"), ("v.mkv", "mkv"), ("v.ts", "mkv")])
def test_a_separated_sound_goes_under_the_untouched_pictures(tmp_path, trained, capsys, name, suffix):
    path = make_video(tmp_path / name, tone(2.0), grey_pictures(20), audio_start=0.5)
    assert command(path, tmp_path / "out", trained, "--remux", "--always") == 0
    (out,) = (tmp_path / "out").iterdir()
    assert capsys.readouterr().out.split() == [str(out)]
    assert out.name == f"v_buzz.{suffix}"
    np.testing.assert_array_equal(pictures(out), pictures(path))
    if not name.endswith(".ts"):  # whose packets have another framing
        assert packets(out) == packets(path)
    assert command(path, tmp_path / "sound", trained, "--always") == 0
    (video_sound, rate), (sound, same_rate) = read_sound(out), read_sound(tmp_path / "sound" / "v_buzz.wav")
    assert rate == same_rate
    length = min(video_sound.shape[-1], sound.shape[-1]) - 2_000
    assert length > 1.9 * rate
    late = int(0.55 * rate)
    difference = video_sound[:, late:length] - sound[:, late:length]
    assert np.mean(difference**2) < 0.05 * np.mean(sound[:, late:length] ** 2)


def test_a_sound_file_has_no_pictures_to_keep(folder, tmp_path, trained, capsys):
    assert command(folder / "y.wav", tmp_path / "out", trained, "--remux") == 0  # stays a sound
    assert (tmp_path / "out" / "y_buzz.wav").is_file()
    make_video(tmp_path / "bare.mp4", tone(1.0))
    shutil.copy(folder / "y.wav", tmp_path / "named.mp4")
    for name in ("bare.mp4", "named.mp4"):
        assert command(tmp_path / name, tmp_path / "bare", trained, "--remux") == 2
        assert f"{name} has no pictures; leave out --remux" in capsys.readouterr().err
        assert not list((tmp_path / "bare").iterdir())


def test_queries_are_read_in_their_order(tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.png")
    asked = [
        ("span", "1-2"), ("without", "rain"), ("query", "guitar + singing"), ("query", "a man who sings"),
        ("without", "wind"), ("span", "3.5-"), ("image", str(tmp_path / "red.png")),
    ]  # fmt: skip
    both, man, picture = read_targets(asked, lambda text: text.upper())
    assert (both.sounds, both.without, both.span, both.name) == (
        ("GUITAR", "SINGING"),
        ("RAIN",),
        (1.0, 2.0),
        "guitar + singing",
    )
    assert (man.without, man.span) == (("RAIN", "WIND"), (3.5, float("inf")))
    assert picture.sounds[0].size == (224, 224)
    assert (picture.name, picture.span) == ("red", (1.0, 2.0))
    (tmp_path / "text.png").write_text("no picture")
    for bad, words in (
        ([("query", "a"), ("span", "x-y")], "no span of seconds"),
        ([("query", "a"), ("span", "4-3")], "from a second to a later one"),
        ([("image", str(tmp_path / "text.png"))], "cannot be read as a picture"),
        ([("image", str(tmp_path / "none.png"))], "does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            read_targets(bad, str)


def test_bare_words_are_put_into_prompts(trained):
    separator = clipsep_jax.load(trained)
    assert separator.prompt("dog") == "a photo of dog"
    assert separator.prompt("an acoustic guitar") == "a photo of an acoustic guitar"
    assert separator.prompt("a photo of accordion") == "a photo of accordion"


def test_python_separates_a_file_into_files(folder, tmp_path, trained):
    separator = clipsep_jax.load(trained)
    vector = np.ones(QUERY_SIZE, np.float32)
    done = separator.separate_file(folder / "y.wav", ["a photo of buzz", vector], tmp_path / "out", residual=True)
    assert [path.name for path in done.paths] == ["y_a-photo-of-buzz.wav", "y_query-2.wav", "y_residual.wav"]
    stems = separator.separate(read_sound(folder / "y.wav")[0][0], ["a photo of buzz", vector]).stems
    for path, stem in zip(done.paths, stems, strict=False):
        np.testing.assert_allclose(read_sound(path)[0][0], stem, atol=2**-15)


@pytest.mark.parametrize("seconds", [0.01, 3.0])
def test_a_picture_shows_mixture_masks_and_results(tmp_path, trained, capsys, seconds):
    soundfile.write(tmp_path / "a.wav", noise(2, round(44_100 * seconds), level=0.3).T, 44_100)
    assert command(tmp_path / "a.wav", tmp_path / "out", trained, "--spectrogram", "--query", "hum") == 0
    assert len(capsys.readouterr().out.split()) == 2 + (seconds > 1)
    assert (tmp_path / "out" / "a_spectrogram.png").exists() == (seconds > 1)
    if seconds > 1:
        with Image.open(tmp_path / "out" / "a_spectrogram.png") as picture:
            assert picture.size == (1440, 936)


def test_an_overview_of_any_length_has_as_many_columns_as_a_picture(monkeypatch):
    monkeypatch.setattr(overview_module, "_MOST_COLUMNS", 8)
    overview, rng = Overview(16_000), np.random.default_rng(0)
    sound = rng.normal(size=(1, 40 * 1_024)).astype(np.float32)
    for start in range(0, sound.shape[-1], 1_500):
        overview.add(sound[:, start : start + 1_500], 0.5 * sound[None, :, start : start + 1_500])
    power = np.stack(overview._columns, axis=-1)
    assert overview._frames_a_column == 8
    assert overview._num_summed == 0
    assert power.shape == (2, 513, 5)
    np.testing.assert_allclose(power[1], 0.25 * power[0], rtol=1e-5)
    frames = sound.reshape(5, 8, 1_024) * np.hanning(1_025)[:-1]
    np.testing.assert_allclose(power[0].T, (np.abs(np.fft.rfft(frames)) ** 2).mean(axis=1), rtol=1e-3)


def test_another_rate_is_written_on_request(folder, tmp_path, trained, capsys):
    assert command(folder / "y.wav", tmp_path / "out", trained, "--rate", "8000") == 0
    capsys.readouterr()
    sound, rate = read_sound(tmp_path / "out" / "y_buzz.wav")
    assert rate == 8_000
    assert abs(sound.shape[-1] - 2_500) <= 1


def test_a_thread_that_runs_ahead_stops_with_its_reader():
    made = []

    def items():
        for number in range(1_000):
            made.append(number)
            yield number

    reader = ahead(items(), 3)
    assert [next(reader) for _ in range(5)] == [0, 1, 2, 3, 4]
    reader.close()
    assert len(made) <= 10

    def broken():
        yield 1
        raise InputError("broken")

    reader = ahead(broken(), 3)
    assert next(reader) == 1
    with pytest.raises(InputError, match="broken"):
        next(reader)
    assert list(ahead(range(100), 2)) == list(range(100))
