"""Damage of every kind is found, by `verify` and by the reader."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipsep_jax.data.record import CorruptRecordError
from clipsep_jax.data.record_set import RecordSet, read_manifest, write_manifest
from clipsep_jax.data_prep.embed_set import embed_record_set
from clipsep_jax.data_prep.verify import verify
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from clipsep_jax.errors import InputError
from tests.data_prep.fakes import FakeEncoder, make_inputs, read_fake


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact") / "records"
    write_records(make_inputs(10), read_fake, folder, run=PoolRunner(num_workers=0), block_size=4)
    embed_record_set(folder, FakeEncoder())
    return folder


@pytest.fixture
def records(intact, tmp_path):
    return Path(shutil.copytree(intact, tmp_path / "records"))


def read_all(folder: Path) -> int:
    """How many records cannot be read."""
    records, num_damaged = RecordSet(folder), 0
    for name in records.splits:
        split = records.split(name)
        for number in range(len(split)):
            try:
                _ = split[number]
            except CorruptRecordError:
                num_damaged += 1
    return num_damaged


def flip(path: Path, rng: random.Random) -> int:
    """Flip a random bit; gives its place."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
    return place


def find_flips(records: Path, num_flips: int) -> None:
    rng, shards = random.Random(1), sorted(records.glob("*.tfrecord"))
    for _ in range(num_flips):
        path = rng.choice(shards)
        good = path.read_bytes()
        place = flip(path, rng)
        problems = list(verify(records))
        assert len(problems) == 1, place
        assert f"{path.name}: record" in problems[0]
        assert read_all(records) == 1, place
        path.write_bytes(good)
    assert list(verify(records)) == []


def test_what_is_intact_has_no_problems(intact):
    assert list(verify(intact)) == []
    assert read_all(intact) == 0


def test_a_flipped_bit_in_a_shard_is_found(records):
    find_flips(records, 10)


@pytest.mark.soak
def test_two_hundred_flipped_bits_are_found(records):
    find_flips(records, 200)


def test_flipped_bits_in_an_index_are_found(records):
    rng, path = random.Random(2), records / "train-00000.tfrecord.index.jsonl"
    good = path.read_bytes()
    for _ in range(30):
        flip(path, rng)
        assert list(verify(records)), path.read_bytes()
        path.write_bytes(good)


def test_other_damage_is_named(records):
    shard = records / "train-00000.tfrecord"
    good = shard.read_bytes()
    for change, words in (
        (lambda: shard.write_bytes(good[:-1]), "restore the file"),
        (shard.unlink, "is missing"),
    ):
        change()
        problems = list(verify(records))
        assert len(problems) == 1
        assert words in problems[0]
        shard.write_bytes(good)
    with pytest.raises(InputError, match="no complete records"):
        list(verify(records / "nowhere"))


NAMES = ["label_embeddings.safetensors", "ledger.jsonl", "features.json", "dataset_info.json"]


@pytest.mark.parametrize("name", NAMES)
def test_damage_to_a_file_beside_the_shards_is_found(records, name):
    good = (records / name).read_bytes()
    flip(records / name, random.Random(3))
    assert [name in problem for problem in verify(records)] == [True]
    (records / name).write_bytes(good)
    assert list(verify(records)) == []
    (records / name).unlink()
    assert [name in problem for problem in verify(records)] == [True]


def test_a_manifest_of_other_counts_is_found(records):
    manifest = read_manifest(records)
    write_manifest(records, replace(manifest, counts=manifest.counts | {"accepted": 9}))
    assert ["counts its records wrongly" in problem for problem in verify(records)] == [True]


@pytest.mark.parametrize(
    "change", [{"length": 10**12}, {"offset": "x"}, {"offset": -1}, {"num_frames": 1.5}, {"id": 3}]
)
def test_an_index_that_points_elsewhere_is_refused(records, change):
    path = records / "train-00000.tfrecord.index.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *others]))
    assert len(list(verify(records))) == 1
    with pytest.raises(InputError, match=r"index\.jsonl.* (points outside of its shard|is not an index)"):
        RecordSet(records).split("train")


def test_a_shard_of_good_records_that_is_not_the_one_that_was_written_is_found(records, tmp_path):
    def read_louder(source):
        outcome = read_fake(source)
        return (
            outcome
            if not hasattr(outcome, "audio")
            else type(outcome)(outcome.id, outcome.label, outcome.audio + np.int16(1), outcome.frames)
        )

    write_records(make_inputs(10), read_louder, tmp_path / "other", run=PoolRunner(num_workers=0), block_size=4)
    embed_record_set(tmp_path / "other", FakeEncoder())
    shutil.copy(tmp_path / "other" / "train-00000.tfrecord", records)
    assert [problem.partition(" does not have the SHA-256")[1] for problem in verify(records)] == [
        " does not have the SHA-256"
    ]
    manifest = read_manifest(tmp_path / "other")
    write_manifest(records, manifest)
    others = len(list(records.glob("*.tfrecord"))) - 1
    assert sum(".tfrecord " in problem for problem in verify(records)) == others
