import dataclasses
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipsep_jax.data.record import decode_frame
from clipsep_jax.data.record_set import LABEL_EMBEDDINGS_NAME, RecordSet
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.demo.toy import draws as parameters
from clipsep_jax.demo.toy.draws import Parameters
from clipsep_jax.demo.toy.pictures import draw, draw_clip
from clipsep_jax.demo.toy.records import ENCODER_NAME, OFF_SCREEN_SHARE, ClipMaker, make_toy_records
from clipsep_jax.demo.toy.sounds import KINDS, SAMPLE_RATE_HZ, off_screen_noise, synthesize
from clipsep_jax.encoders.clip import load_clip
from clipsep_jax.errors import InputError
from clipsep_jax.queries.table import EmbeddingTable

SECONDS = 6


def _sound(kind, seed, split="train"):
    return synthesize(kind, np.random.default_rng(seed), split, SECONDS * SAMPLE_RATE_HZ)


def _dbfs(wave):
    return 10 * np.log10(np.mean(np.square(wave, dtype=np.float64)))


@pytest.fixture
def recorded(monkeypatch):
    """Values drawn from each range, as (low, high) -> list, while the test runs."""
    values = {}
    original = Parameters.several_between

    def several_between(self, low, high, count):
        drawn = original(self, low, high, count)
        values.setdefault((float(low), float(high)), []).extend(drawn)
        return drawn

    monkeypatch.setattr(Parameters, "several_between", several_between)
    return values


def _drawn(recorded, make, split):
    recorded.clear()
    for seed in range(25):
        make(np.random.default_rng(seed), split)
    return {key: np.array(values) for key, values in recorded.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [lambda kind, rng, split: synthesize(kind, rng, split, 8000), draw])
def test_training_never_has_a_parameter_of_the_test_bands(recorded, make, kind):
    train = _drawn(recorded, lambda rng, split: make(kind, rng, split), "train")
    test = _drawn(recorded, lambda rng, split: make(kind, rng, split), "test")
    assert len(set(train) & set(test)) >= 3
    for low, high in set(train) & set(test):
        cells = [set(np.floor((v[low, high] - low) / (high - low) * 10 - 1e-9).astype(int)) for v in (train, test)]
        assert not cells[0] & cells[1]
        assert cells[1] <= set(parameters.TEST_CELLS)


def test_test_bands_lie_between_training_bands():
    train, test = (Parameters(np.random.default_rng(0), s).several_between(0, 1, 4000) for s in ("train", "test"))
    for band in (test[test < 0.5], test[test > 0.5]):
        assert not ((train >= band.min()) & (train <= band.max())).any()
        assert (train < band.min()).any()
        assert (train > band.max()).any()


@pytest.mark.parametrize("kind", KINDS)
def test_sounds_have_their_level_and_no_long_silence(kind):
    for split, seed in itertools.product(("train", "test"), range(3)):
        wave = _sound(kind, seed, split)
        assert wave.dtype == np.float32
        assert wave.shape == (SECONDS * SAMPLE_RATE_HZ,)
        assert np.abs(wave).max() <= 0.9 + 1e-6
        assert -26.5 <= _dbfs(wave) <= -17.9
        halves = wave.reshape(2 * SECONDS, -1)
        assert min(map(_dbfs, halves)) > _dbfs(wave) - 15


def test_sounds_depend_on_the_seed_alone_and_vary_with_it():
    for kind in KINDS:
        np.testing.assert_array_equal(_sound(kind, 1), _sound(kind, 1))
        assert np.abs(np.corrcoef(_sound(kind, 1), _sound(kind, 2))[0, 1]) < 0.5


def _band_shares(kind):
    """Share of a kind's energy in each of ten bands, evenly wide in octaves."""
    waves = [_sound(kind, seed) for seed in range(6)]
    power = sum(np.abs(np.fft.rfft(wave)) ** 2 / np.sum(wave**2) for wave in waves)
    edges = np.searchsorted(np.fft.rfftfreq(len(waves[0]), 1 / SAMPLE_RATE_HZ), np.geomspace(60, 8000, 11))
    shares = np.array([power[low:high].sum() for low, high in itertools.pairwise(edges)])
    return shares / shares.sum()


def test_no_kind_has_a_frequency_band_of_its_own():
    shares = {kind: _band_shares(kind) for kind in KINDS}
    for kind in KINDS:
        overlaps = [np.minimum(shares[kind], shares[other]).sum() for other in KINDS if other != kind]
        assert sum(overlap > 0.25 for overlap in overlaps) >= 3


def test_off_screen_noise_is_quieter_than_every_sound():
    for seed in range(6):
        noise = off_screen_noise(np.random.default_rng(seed), 32_000)
        assert noise.dtype == np.float32
        assert -36.5 <= _dbfs(noise) <= -27.9


def test_pictures_differ_between_clips_and_move_a_little_within_one():
    for kind in KINDS:
        first, second = (draw_clip(kind, np.random.default_rng(seed), "train", 3) for seed in (1, 2))
        assert all(frame.shape == (224, 224, 3) and frame.dtype == np.uint8 for frame in first)
        within = np.abs(first[0].astype(float) - first[1]).mean()
        between = np.abs(first[0].astype(float) - second[0]).mean()
        assert 0 < within < between / 2
        np.testing.assert_array_equal(first[0], draw(kind, np.random.default_rng(1), "train"))


def test_a_share_of_the_training_clips_alone_has_off_screen_noise(monkeypatch):
    noisy = []
    monkeypatch.setattr("clipsep_jax.demo.toy.records.synthesize", lambda kind, rng, split, n: np.zeros(n, np.float32))
    monkeypatch.setattr("clipsep_jax.demo.toy.records.draw_clip", lambda *_: [])
    for split in ("train", "validation", "test"):
        clips = [ClipMaker(0)(Input(f"{split}/{i:05d}", Path(), "dog", split)) for i in range(40)]
        noisy.append(np.mean([clip.audio.any() for clip in clips]))
    assert abs(noisy[0] - OFF_SCREEN_SHARE) < 0.2
    assert noisy[1:] == [0, 0]


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory):
    return make_toy_records(tmp_path_factory.mktemp("toy") / "records", 20, 0)


def _fingerprints(folder):
    splits = RecordSet(folder).manifest.splits
    return {shard.name: shard.sha256 for shards in splits.values() for shard in shards}


@pytest.mark.slow
def test_toy_set_reads_back_with_the_embeddings_of_its_encoder(toy_set):
    records, encoder = RecordSet(toy_set), load_clip(str(toy_set / ENCODER_NAME))
    assert {name: len(records.split(name)) for name in records.splits} == {"train": 16, "validation": 2, "test": 2}
    assert records.labels == tuple(sorted(KINDS))
    assert (records.encoder.name, records.encoder.sha256) == (str(toy_set.resolve() / ENCODER_NAME), encoder.sha256)
    record = records.split("train")[3]
    assert len(record.audio) == 8 * 16_000
    assert len(record.frames) == 8
    frames = np.stack([decode_frame(jpeg) for jpeg in record.frames])
    np.testing.assert_allclose(record.frame_embeddings, encoder.embed_frames(frames), atol=1e-5)
    table = EmbeddingTable.load(toy_set / LABEL_EMBEDDINGS_NAME)
    np.testing.assert_allclose(table.lookup("dog"), encoder.embed_text(["a photo of dog"])[0], atol=1e-5)
    assert Image.open(io.BytesIO(record.frames[0])).size == (224, 224)


@pytest.mark.slow
def test_toy_set_is_made_once_and_alike_everywhere(toy_set, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in toy_set.rglob("*")}
    assert make_toy_records(toy_set, 20, 0) == toy_set
    assert {path: path.stat().st_mtime_ns for path in toy_set.rglob("*")} == before
    assert [path.name for path in toy_set.parent.iterdir()] == ["records"]
    assert _fingerprints(make_toy_records(tmp_path / "again", 20, 0)) == _fingerprints(toy_set)
    assert _fingerprints(make_toy_records(tmp_path / "other", 20, 0, seed=1)) != _fingerprints(toy_set)


@pytest.mark.slow
def test_toy_set_refuses_a_folder_of_other_content(toy_set):
    with pytest.raises(InputError, match="something other"):
        make_toy_records(toy_set, 30, 0)


def test_toy_set_refuses_foreign_files_and_too_few_clips(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="something other"):
        make_toy_records(tmp_path, 20, 0)
    with pytest.raises(InputError, match="too few"):
        make_toy_records(tmp_path / "new", 19, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_toy_set_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("clipsep_jax.demo.toy.records.train_toy_clip", stop)
    with pytest.raises(KeyboardInterrupt):
        make_toy_records(tmp_path / "records", 20, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_clip_depends_on_its_name_and_the_seed():
    maker = ClipMaker(0)
    source = Input("test/00001", Path(), "bell", "test")
    first, again = (maker(source) for _ in range(2))
    np.testing.assert_array_equal(first.audio, again.audio)
    assert first.frames == again.frames
    other = dataclasses.replace(maker, seed=1)(source)
    assert other.frames != first.frames
    assert (other.audio != first.audio).any()
