"""Records of which only what is used is read give what whole ones give, and damage to what is used is found."""

import json
from dataclasses import replace

import numpy as np
import pytest

from clipsep_jax.data.index import index_path
from clipsep_jax.data.record import CorruptRecordError, Record
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.data.stored import PART_BYTES, StoredRecord
from clipsep_jax.data_prep.verify import verify
from clipsep_jax.queries.kinds import KINDS
from tests.small import QUERY_SIZE, make_records, small_config


def without_parts(records: RecordSet) -> RecordSet:
    """The same records with indexes as earlier versions wrote them."""
    for name in records.splits:
        for shard in records.manifest.splits[name]:
            path = index_path(records.folder / shard.name)
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text(
                "".join(json.dumps({k: v for k, v in line.items() if k != "parts"}) + "\n" for line in lines)
            )
    return RecordSet(records.folder)


def test_any_cut_equals_that_of_the_whole_record(tmp_path):
    split = RecordSet(make_records(tmp_path)).split("train", with_frames=False)
    rng = np.random.default_rng(0)
    for number in range(len(split)):
        part, whole = split.clip(number), split[number]
        assert isinstance(part, StoredRecord)
        assert (part.id, part.label, part.num_frames) == (whole.id, whole.label, whole.num_frames)
        assert len(part.audio) == len(whole.audio)
        cuts = [slice(None), slice(5, 5), slice(9, 3), slice(-7, None), slice(len(whole.audio) - 1, 10**9)]
        cuts += [slice(*sorted(rng.integers(0, len(whole.audio), 2))) for _ in range(20)]
        for cut in cuts:
            np.testing.assert_array_equal(part.audio[cut], whole.audio[cut], strict=True)
        for rows in ([0], [1, 0, 1], [0, 0, 1]):
            np.testing.assert_array_equal(
                part.frame_embeddings[np.array(rows, np.int16)], whole.frame_embeddings[rows], strict=True
            )


@pytest.mark.parametrize("kind", ["image", "text", "label"])
@pytest.mark.parametrize("training", [True, False])
def test_batches_equal_those_of_older_indexes_bit_for_bit(tmp_path, kind, training):
    records, config = RecordSet(make_records(tmp_path)), small_config(tmp_path)
    found = KINDS[kind].batches(config, records, "train", training=training, batch_size=2)
    first = [found[step] for step in range(6)]
    older = KINDS[kind].batches(config, without_parts(records), "train", training=training, batch_size=2)
    assert isinstance(older.reader.split.clip(0), Record)
    for step, batch in enumerate(first):
        for name in ("sources", "gain", "query"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(older[step], name), strict=True)
    assert list(verify(tmp_path)) == []


def test_damage_is_found_in_what_is_read_and_in_no_other_part(tmp_path):
    records = RecordSet(make_records(tmp_path))
    split = records.split("train", with_frames=False)
    entry = split.entries[2]
    path = tmp_path / entry.shard
    good = path.read_bytes()
    for place in (0, PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES - 1):
        damaged = bytearray(good)
        damaged[entry.offset + 12 + place] ^= 1
        path.write_bytes(damaged)
        part = place // PART_BYTES
        first, second = split.clip(2).audio, split.clip(2).audio
        in_first, in_second = slice(0, 10), slice(PART_BYTES // 2, PART_BYTES // 2 + 10)
        with pytest.raises(CorruptRecordError, match=r"record 2 is damaged \(its checksum is wrong\)"):
            first[in_second if part else in_first]
        second[in_first if part else in_second]


def test_an_index_that_points_elsewhere_in_its_record_is_found(tmp_path):
    records = RecordSet(make_records(tmp_path))
    entry = records.split("train").entries[0]
    for change in (
        {"audio": -4},
        {"audio": 10**9},
        {"checks": "AAAA"},
        {"checks": "no base64!"},
        {"checks": ""},
        {"embeddings": None},
        {"query_size": QUERY_SIZE + 1},
        {"embeddings": entry.length - 4},
        {"label": "hiss"},
    ):
        path = index_path(tmp_path / entry.shard)
        good = path.read_text()
        first, *others = good.splitlines()
        line = json.loads(first)
        changed = line | (change if "label" in change else {"parts": line["parts"] | change})
        path.write_text("\n".join([json.dumps(changed), *others]))
        clip = KINDS["image"].reader(small_config(tmp_path), records)
        with pytest.raises(CorruptRecordError, match="record 0"):
            clip(RecordSet(tmp_path).split("train", with_frames=False).clip(0), None)
        assert len(list(verify(tmp_path))) == 1
        path.write_text(good)


def test_compressed_sound_and_pictures_are_read_whole(tmp_path):
    split = RecordSet(make_records(tmp_path)).split("train")
    assert isinstance(split.clip(0), Record)
    bare = replace(split.entries[0], parts=None)
    split = RecordSet(tmp_path).split("train", with_frames=False)
    split.entries = [bare, *split.entries[1:]]
    assert isinstance(split.clip(0), Record)
    assert all(entry.parts for entry in RecordSet(tmp_path).split("train").entries)
