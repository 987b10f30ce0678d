"""Whether a sound is there: shares, probabilities, their file, and stems that are silent by them."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import clipsep_jax
from clipsep_jax.cli.main import main
from clipsep_jax.errors import InputError
from clipsep_jax.model_dir import open_model_dir
from clipsep_jax.separation.masking import Masking, Recipe, share_odds
from clipsep_jax.separation.options import Options
from clipsep_jax.separation.presence import PRESENCE_FILE, Fit, Presence
from clipsep_jax.separation.separator import Separator
from clipsep_jax.separation.targets import Target
from clipsep_jax.spectrogram import log_warped_magnitude, stft
from clipsep_jax.tensors import write_tensors
from tests.separation.inputs import noise, query

SHAPE = (256, 8)


def calibration(threshold: float = 0.5, slope: float = 1.0) -> Presence:
    references = np.random.default_rng(0).normal(-3, 1, (5, *SHAPE)).astype(np.float32)
    return Presence(references, Fit(slope, 0.25, threshold, 0.9, 0.8, 128, 128))


@pytest.fixture
def separator(trained) -> Separator:
    return clipsep_jax.load(trained)


def test_odds_are_those_of_the_share_of_energy():
    rng = np.random.default_rng(0)
    masks = rng.uniform(size=(2, 3, 16, 8)).astype(np.float32)
    magnitude = rng.uniform(0.1, 5, (2, 16, 8))
    share = (masks**2 * magnitude[:, None] ** 2).sum((2, 3)) / (magnitude**2).sum((1, 2))[:, None]
    odds = share_odds(jnp.asarray(masks), jnp.asarray(np.log(magnitude), jnp.float32))
    np.testing.assert_allclose(odds, np.log(share / (1 - share)), rtol=1e-4)
    for mask in (0.0, 1.0):
        assert np.isfinite(share_odds(jnp.full((1, 1, 16, 8), mask), jnp.full((1, 16, 8), -23.0))).all()


def test_probabilities_compare_with_the_references_of_a_query():
    presence = calibration(slope=2.0)
    odds, reference_odds = np.float32([[1.0, -2.0]]), np.float32([[0, -3], [1, -1], [2, -2], [1, -2]])
    z = (odds - reference_odds.mean(axis=0)) / reference_odds.std(axis=0)
    found = presence.probability(odds, reference_odds)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(2 * z + 0.25))), rtol=1e-6)


def test_a_calibration_comes_back_and_damaged_ones_are_refused(tmp_path):
    assert Presence.load(tmp_path, SHAPE) is None
    presence = calibration()
    presence.save(tmp_path)
    found = Presence.load(tmp_path, SHAPE)
    assert found is not None
    assert found.fit == presence.fit
    np.testing.assert_allclose(found.references, presence.references, atol=5e-3)
    with pytest.raises(InputError, match="not the calibration of a model"):
        Presence.load(tmp_path, (256, 16))
    path, good = tmp_path / PRESENCE_FILE, {"references": presence.references}
    for tensors, metadata in (
        (good, {}),
        (good, {"fit": '{"slope": "steep"}'}),
        ({"others": presence.references}, {"fit": "{}"}),
        ({"references": presence.references * np.nan}, {"fit": "{}"}),
    ):
        write_tensors(path, tensors, metadata)
        with pytest.raises(InputError, match=PRESENCE_FILE):
            Presence.load(tmp_path, SHAPE)
    path.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=PRESENCE_FILE):
        Presence.load(tmp_path, SHAPE)


def test_sounds_that_are_not_there_are_silent_unless_always(separator):
    waveform, queries = noise(2, 40_000), [query(0), query(1)]
    plain = separator.separate(waveform, queries)
    np.testing.assert_array_equal(plain.presence, np.ones((2, 3)))  # 2.5 s of a model that is not calibrated
    separator.presence = calibration(threshold=2.0)
    silent = separator.separate(waveform, queries)
    assert not silent.stems.any()
    np.testing.assert_array_equal(silent.residual, waveform)
    assert (silent.presence < 1).all()
    always = separator.separate(waveform, queries, options=Options(always=True))
    np.testing.assert_array_equal(always.stems, plain.stems)
    np.testing.assert_array_equal(always.presence, silent.presence)
    separator.presence = calibration(threshold=0.0)
    np.testing.assert_array_equal(separator.separate(waveform, queries).stems, plain.stems)


def test_the_presence_of_a_chunk_is_as_written(separator):
    waveform, queries = noise(2_047), [query(0), query(1)]
    separator.presence = presence = calibration()
    odds = [separator.logits_of_inputs(presence.references, np.stack([np.stack(queries)] * 5)).query]
    reference_odds = np.asarray(share_odds(1 / (1 + jnp.exp(-odds[0])), jnp.asarray(presence.references)))
    recipe = Recipe(np.eye(2, dtype=np.float32), np.zeros((2, 2), np.float32))
    masking = Masking(separator._network, np.stack(queries), separator.config.spectrogram, recipe, ordered=True)
    np.testing.assert_array_equal(masking.masks(noise(1, 1, 2_816))[0, :, -1], 1)
    config = separator.config.spectrogram
    logits = separator.logits_of_clips(waveform[None], np.stack(queries)[None]).query
    inputs = log_warped_magnitude(jnp.abs(stft(jnp.asarray(waveform), config)), config)[None]
    expected = presence.probability(np.asarray(share_odds(1 / (1 + jnp.exp(-logits)), inputs)), reference_odds)
    found = separator.separate(waveform, queries).presence
    np.testing.assert_allclose(found[:, 0], expected[0], rtol=1e-4)


def test_a_sum_is_there_where_one_of_its_sounds_is(separator):
    separator.presence = calibration()
    alone = separator.separate(noise(9_000), [query(0), query(1)]).presence
    both = separator.separate(noise(9_000), [Target((query(0), query(1)))]).presence
    np.testing.assert_allclose(both[0], alone.max(axis=0), atol=1e-6)


@pytest.mark.slow
def test_an_imported_model_is_calibrated(trained, clip_records, tmp_path, capsys):
    pytest.importorskip("torch")
    checkpoint = tmp_path / "best_model.pt"
    assert main(["export-torch", str(trained), str(checkpoint)]) == 0
    encoder = open_model_dir(trained).encoder_name
    arguments = ["import-torch", str(checkpoint), str(tmp_path / "model"), "--clip", encoder]
    assert main([*arguments, "--records", str(clip_records)]) == 0
    assert "targets of validation that are there" in capsys.readouterr().out
    assert Separator.load(tmp_path / "model").presence is not None


@pytest.mark.slow
def test_commands_calibrate_and_tell(trained, clip_records, tmp_path, capsys):
    trained_copy = shutil.copytree(open_model_dir(trained).folder, tmp_path / "model")
    assert main(["calibrate", str(trained_copy), "--records", str(clip_records), "--test", "validation"]) == 0
    told = capsys.readouterr().out
    assert "targets of validation that are there" in told
    assert "On validation, ROC AUC" in told
    soundfile.write(tmp_path / "a.wav", noise(20_000), 16_000)
    loaded = Separator.load(trained_copy)
    assert loaded.presence is not None
    Presence(loaded.presence.references, calibration(threshold=1.5).fit).save(loaded.model_dir.folder)
    arguments = ["separate", str(tmp_path / "a.wav"), "--model", str(trained_copy), "--query", "buzz"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "a_buzz.wav is silent: its sound is not likely to be there" in capsys.readouterr().err
    assert not soundfile.read(tmp_path / "out" / "a_buzz.wav")[0].any()
    assert main([*arguments, "--out", str(tmp_path / "out"), "--overwrite", "--always"]) == 0
    assert "silent" not in capsys.readouterr().err
    assert soundfile.read(tmp_path / "out" / "a_buzz.wav")[0].any()
