"""Separation of recordings of any length, and model directories."""

import gc
import json
import shutil
import weakref
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import clipsep_jax
from clipsep_jax.cli.main import main
from clipsep_jax.config import Config
from clipsep_jax.encoders.clip import ClipEncoder
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.model_dir import describe, open_model_dir
from clipsep_jax.separation import masking
from clipsep_jax.separation.separator import Separator, masked_clips
from clipsep_jax.separation.targets import Target
from clipsep_jax.sound_files import write_sound
from clipsep_jax.spectrogram import istft, log_warped_magnitude, stft, unwarp
from clipsep_jax.tensors import read_metadata, read_tensors, write_tensors
from clipsep_jax.training.loop import train
from tests.separation.inputs import noise, query
from tests.small import QUERY_SIZE, small_config

CHUNK = 2047


@pytest.fixture(scope="module")
def separator(trained) -> Separator:
    return clipsep_jax.load(trained)


@pytest.mark.parametrize("length", [1, 100, 2047, 2048, 5000, 20_000])
def test_stems_and_residual_are_as_long_as_the_input_and_add_up_to_it(separator, length):
    waveform = noise(length)
    separation = separator.separate(waveform, [query(0), query(1)])
    assert separation.stems.shape == (2, length)
    np.testing.assert_allclose(separation.stems.sum(axis=0) + separation.residual, waveform, atol=1e-6)


@pytest.mark.slow
def test_one_chunk_is_masked_as_written(separator):
    waveform = jnp.asarray(noise(CHUNK))
    config = separator.config.spectrogram
    spectrum = stft(waveform, config)
    model = separator.model_dir.load_model()
    logits = model(log_warped_magnitude(jnp.abs(spectrum), config)[None], jnp.asarray(query())[None, None])
    mask = unwarp(jax.nn.sigmoid(logits.query[0, 0]), config)
    expected = istft(mask.astype(spectrum.dtype) * spectrum, config, CHUNK)
    np.testing.assert_allclose(separator.separate(np.asarray(waveform), [query()]).stems[0], expected, atol=1e-5)


def test_queries_may_be_text_pictures_or_embeddings(separator):
    picture = Image.new("RGB", (50, 40), "red")
    embeddings = separator.embed(["a red square", picture, query()])
    assert embeddings.shape == (3, QUERY_SIZE)
    np.testing.assert_array_equal(embeddings[2], query())
    frames = np.stack([np.asarray(picture), np.asarray(picture)])
    np.testing.assert_allclose(separator.embed([frames])[0], embeddings[1], atol=1e-5)
    assert not np.allclose(embeddings[0], embeddings[1])


@pytest.mark.parametrize("waveform", [np.zeros(0, np.float32), np.array([0.1, np.nan], np.float32)])
def test_recordings_without_usable_samples_are_refused(separator, waveform):
    with pytest.raises(InputError, match="empty or holds values"):
        separator.separate(waveform, [query()])


def test_no_query_and_odd_pictures_are_refused(separator):
    with pytest.raises(InputError, match="no query"):
        separator.separate(noise(100), [])
    with pytest.raises(InputError, match="uint8"):
        separator.embed([np.zeros((2, 3, 4, 5), np.uint8)])


def count_texts(monkeypatch) -> list[str]:
    """The texts that encoders embed from now on."""
    embedded, embed_text = [], ClipEncoder.embed_text

    def counted(encoder, texts):
        embedded.extend(texts)
        return embed_text(encoder, texts)

    monkeypatch.setattr(ClipEncoder, "embed_text", counted)
    return embedded


def test_a_text_is_embedded_once(trained, monkeypatch):
    embedded = count_texts(monkeypatch)
    separator = Separator.load(trained)
    separator.separate(noise(100), ["a buzz", "a hum"])
    again = separator.embed(["a hum", "a hiss"])
    again[:] = 0  # the caller's own
    separator.separate(noise(100), ["a hiss", "a buzz"])
    assert embedded == ["a buzz", "a hum", "a hiss"]
    assert separator.embed(["a hum"]).any()


def test_the_command_embeds_each_sentence_once(trained, tmp_path, monkeypatch):
    embedded = count_texts(monkeypatch)
    write_sound(tmp_path / "in.wav", noise(5000), 16_000)
    arguments = ["separate", str(tmp_path / "in.wav"), "--model", str(trained), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--query", "a buzz", "--query", "a hum"]) == 0
    assert embedded == ["a photo of a buzz", "a photo of a hum"]
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.slow
def test_a_dropped_separator_leaves_nothing_behind(trained):
    """Compiled programs are shared, and hold neither a separator nor its weights."""
    counts = []
    for _ in range(8):
        separator = Separator.load(trained)
        separator.separate(noise(100), [query()])
        separator.mask_logits(np.ones((513, 8), np.float32), query()[None])
        dropped = weakref.ref(separator)
        del separator
        gc.collect()
        assert dropped() is None
        counts.append(len(jax.live_arrays()))
    assert max(counts) == counts[0]


def test_separators_of_one_config_share_their_programs(trained):
    first, second = Separator.load(trained), Separator.load(trained)
    first.separate(noise(100), [query()])
    compiled = masking._masks._cache_size()
    second.separate(noise(100), [query()])
    assert masking._masks._cache_size() == compiled


def test_long_text_is_cut_with_a_word_about_it(separator):
    with pytest.warns(InputWarning, match="cut at 77 tokens"):
        separator.embed(["word " * 500])


@pytest.mark.slow
def test_model_directory_is_complete_and_can_be_moved(clip_records, tmp_path):
    moved = train(small_config(clip_records), tmp_path / "run").rename(tmp_path / "moved")
    assert {p.name for p in moved.iterdir()} == {"config.json", "model.safetensors", "query_encoder"}
    assert Separator.load(moved).embed(["a buzz"]).shape == (1, QUERY_SIZE)
    assert "noise_invariant" in describe(open_model_dir(moved))


def corrupted(trained, tmp_path, name, change):
    copy = tmp_path / "copy"
    shutil.copytree(open_model_dir(trained).folder, copy)
    change(copy / name)
    return copy


def edit_config(**changes):
    def change(path):
        values = json.loads(path.read_text())
        values["config"]["model"] |= changes
        path.write_text(json.dumps(values))

    return change


def set_weights(value: float, dtype: type = np.float32):
    """All weights become one number."""

    def change(path):
        metadata = read_metadata(path)
        write_tensors(path, {n: np.full_like(x, value, dtype) for n, x in read_tensors(path).items()}, metadata)

    return change


def test_sounds_that_are_not_finite_are_never_written(trained, tmp_path, capsys):
    folder = corrupted(trained, tmp_path, "model.safetensors", set_weights(3e38))
    write_sound(tmp_path / "in.wav", noise(5000), 16_000)
    arguments = ["separate", str(tmp_path / "in.wav"), "--model", str(folder), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--query", "a buzz"]) == 2
    assert "gives sounds that are not finite" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))
    with pytest.raises(ValueError, match="not finite"):
        write_sound(tmp_path / "out.wav", np.float32([0, np.nan]), 16_000)
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", set_weights(np.nan), "holds numbers that are not finite"),
        ("model.safetensors", set_weights(-np.inf), "holds numbers that are not finite"),
        ("model.safetensors", set_weights(1, np.int64), "of another type"),
        ("query_encoder/model.safetensors", set_weights(np.nan), "query_encoder/model.safetensors holds numbers"),
        ("model.safetensors", lambda p: p.unlink(), "holds no trained model"),
        ("model.safetensors", lambda p: p.write_bytes(p.read_bytes()[:100]), "damaged"),
        ("config.json", lambda p: p.write_text("{}"), "not the config of a clipsep model"),
        ("config.json", lambda p: p.write_text("not json"), "not the config of a clipsep model"),
        ("config.json", edit_config(widht=3), "widht is not an option"),
        ("config.json", edit_config(width=4), "does not fit the network"),
        ("config.json", edit_config(num_noise_heads=3), "missing"),
    ],
)
def test_damaged_model_directories_are_refused(trained, tmp_path, name, change, message):
    folder = corrupted(trained, tmp_path, name, change)
    with pytest.raises(InputError, match=message):
        Separator.load(folder).embed(["a buzz"])


def test_an_encoder_of_another_size_is_refused(separator):
    config = separator.config
    other = Separator(separator.model_dir)
    other.config = replace(config, model=replace(config.model, query_size=7))
    with pytest.raises(InputError, match="embeddings of size 6"):
        other.embed(["text"])


@pytest.mark.slow
def test_what_is_left_out_is_told_to_a_model_of_negative_queries(clip_records, tmp_path):
    """Its masks are those of both queries; then shares in power, as for every model."""
    config = small_config(clip_records)
    network = replace(config.model, negative_query=True, num_noise_heads=0)
    train(replace(config, model=network, objective=Config().objective), tmp_path / "run")
    separator = clipsep_jax.load(tmp_path / "run")
    rng = np.random.default_rng(0)
    waveform = rng.uniform(-0.5, 0.5, separator.config.spectrogram.num_samples).astype(np.float32)
    guitar, rain = rng.normal(size=(2, QUERY_SIZE)).astype(np.float32)
    found = separator.separate(waveform, [Target((guitar,), without=(rain,)), guitar]).stems
    pairs = ((guitar, rain), (rain, guitar), (guitar, 0 * rain))
    both = np.stack([np.concatenate(pair) for pair in pairs])
    masks = 1 / (1 + np.exp(-np.asarray(separator.logits_of_clips(waveform[None], both[None]).query)))[0]
    shares = masks[0] ** 2 / (masks[0] ** 2 + masks[1] ** 2 + np.maximum(0, 1 - masks[0] - masks[1]) ** 2)
    expected = masked_clips(
        jnp.asarray(np.stack([shares, masks[2]]))[None], jnp.asarray(waveform)[None], separator.config.spectrogram
    )
    np.testing.assert_allclose(found, expected[0], atol=2e-6)
    apart = separator.logits_of_clips(waveform[None], np.stack([guitar, rain])[None]).query
    assert np.abs(1 / (1 + np.exp(-np.asarray(apart)))[0, 0] - masks[0]).max() > 1e-6
