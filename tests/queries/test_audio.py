"""Sounds as queries: another segment of the clip in training, an example from the user afterwards."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile

import clipsep_jax
from clipsep_jax.cli.main import main
from clipsep_jax.config import Config
from clipsep_jax.data.clips import ClipReader, example_start
from clipsep_jax.data.record_set import LABEL_EMBEDDINGS_NAME, RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.mixtures import MixtureReader
from clipsep_jax.evaluation.protocols import drawn_protocol
from clipsep_jax.official.checkpoint import export_torch
from clipsep_jax.queries.base import Example
from clipsep_jax.separation.targets import read_example
from clipsep_jax.tensors import read_tensors
from clipsep_jax.training.initial import Init, read_initial_weights
from clipsep_jax.training.loop import train
from clipsep_jax.training.setup import Run
from tests.small import QUERY_SIZE, make_record, make_records, small_config


def audio_config(records, **train_options):
    config = small_config(records, **train_options)
    network = replace(config.model, num_noise_heads=0)
    return replace(config, query=replace(config.query, kind="audio"), model=network, objective=Config().objective)


@pytest.fixture(scope="module")
def by_examples(made_once, clip_records):
    """The workdir of a model that is asked by examples."""
    return made_once("by_examples", lambda folder: train(audio_config(clip_records), folder))


@pytest.mark.parametrize(("start", "length"), [(0, 100), (30, 100), (70, 100), (50, 55), (3, 20), (0, 8)])
def test_the_other_segment_is_disjoint_where_the_clip_has_room(start, length):
    rng, size = np.random.default_rng(0), 10
    starts = [example_start(start, length, size, rng) for _ in range(300)]
    assert all(0 <= other <= max(0, length - size) for other in starts)
    possible = {other for other in range(max(0, length - size) + 1) if abs(other - start) >= size}
    assert set(starts) <= (possible or {0, length - size, max(0, length - size)})
    assert len(set(starts)) > 0.8 * len(possible)
    assert example_start(start, length, size, None) == (0 if start > length - size - start else max(0, length - size))


def test_examples_come_from_elsewhere_in_the_clip():
    config = small_config("")
    reader = ClipReader(config.data, config.spectrogram, None, examples=True)
    record = make_record(0)
    record = replace(record, audio=np.arange(len(record.audio)).astype(np.int16))
    for rng in (np.random.default_rng(1), None):
        clip = reader(record, rng)
        assert clip["examples"].shape == clip["sources"].shape
        heard = [set(clip[name][clip[name] > 0].tolist()) for name in ("examples", "sources")]
        assert all(len(samples) > 1_000 for samples in heard)
        assert not heard[0] & heard[1]


@pytest.mark.slow
def test_the_encoder_learns_with_the_separator(by_examples, clip_records, tmp_path):
    run = Run(audio_config(clip_records))
    initial = run.trainer.init()
    found = read_tensors(by_examples / "best")
    names = [name for name in run.trainer.shapes if name.startswith("audio_encoder")]
    assert len(names) > 10
    untrained = tmp_path / "untrained"
    train(audio_config(clip_records, steps=1), untrained)
    assert all(not np.array_equal(found[name], read_tensors(untrained / "best")[name]) for name in names)
    assert read_initial_weights(run, Init(str(by_examples))).put_into(initial).params.keys() == initial.params.keys()


@pytest.mark.slow
def test_it_needs_neither_labels_nor_pictures(tmp_path):
    records = make_records(tmp_path / "records", labels=("",))
    (records / LABEL_EMBEDDINGS_NAME).unlink()
    best = train(audio_config(records, steps=2), tmp_path / "run")
    assert clipsep_jax.load(best).model_dir.config.query.kind == "audio"


@pytest.mark.slow
def test_the_loudness_of_an_example_does_not_matter_and_long_ones_are_averaged(by_examples):
    separator = clipsep_jax.load(by_examples)
    size = separator.config.spectrogram.num_samples
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * size).astype(np.float32)
    (whole, quiet, *parts, short, tiled) = separator.embed(
        [Example(sound), Example(0.01 * sound), *(Example(part) for part in np.split(sound, 3)),
         Example(sound[: size // 2]), Example(np.tile(sound[: size // 2], 3))]
    )  # fmt: skip
    assert whole.shape == (QUERY_SIZE,)
    np.testing.assert_allclose(quiet, whole, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.mean(parts, axis=0), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(short, tiled, rtol=1e-5, atol=1e-6)
    assert np.abs(parts[0] - short).max() > 1e-4


@pytest.mark.slow
def test_what_is_scored_is_asked_by_another_clip_of_the_label(by_examples, clip_records):
    separator, records = clipsep_jax.load(by_examples), RecordSet(clip_records)
    protocol = drawn_protocol(records, "validation", 4, 2)
    read = MixtureReader(separator.config, protocol, separator).read(protocol.mixtures)
    clip = protocol.mixtures[0].clips[0]
    entries = clip.split.entries
    (other,) = (n for n, entry in enumerate(entries) if entry.label == clip.label and n != clip.number)
    reader = ClipReader(separator.config.data, separator.config.spectrogram, None)
    sound = reader(clip.split.clip(other), None)["sources"].astype(np.float32) / 32768
    np.testing.assert_allclose(read.examples[0, 0], separator.embed([Example(sound)])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_recording_is_separated_by_an_example(by_examples, trained, tmp_path, capsys):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "street.wav", rng.uniform(-0.5, 0.5, 5_000), 16_000)
    soundfile.write(tmp_path / "bark.wav", rng.uniform(-0.5, 0.5, (9_000, 2)), 44_100)
    command = ["separate", str(tmp_path / "street.wav"), "--out", str(tmp_path / "out")]
    by_bark = ["--example", str(tmp_path / "bark.wav")]
    assert main([*command, "--model", str(by_examples), *by_bark]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "street_bark.wav")
    assert soundfile.info(tmp_path / "out" / "street_bark.wav").frames == 5_000
    assert len(read_example(tmp_path / "bark.wav").waveform) == pytest.approx(9_000 * 16_000 / 44_100, abs=1)
    for model, more, message in (
        (by_examples, ["--query", "bark"], "is asked by example sounds; give one with --example FILE"),
        (trained, by_bark, "is asked by texts and pictures, not by example sounds"),
        (by_examples, ["--example", str(tmp_path / "none.wav")], "cannot be read as sound"),
        (by_examples, ["--example", str(tmp_path)], "cannot be read as sound"),
    ):
        assert main([*command, "--model", str(model), *more, "--overwrite"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_empty_example_and_the_official_layout_are_refused(by_examples, tmp_path):
    separator = clipsep_jax.load(by_examples)
    with pytest.raises(InputError, match="example is empty"):
        separator.embed([Example(np.zeros(0, np.float32))])
    with pytest.raises(InputError, match=r"parts that no official class has \(audio_encoder"):
        export_torch(by_examples, tmp_path / "out.pt")
