import io
import json
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipsep_jax.data.index import Shard
from clipsep_jax.data.record import CorruptRecordError, Record, encode_record
from clipsep_jax.data.record_set import (
    Contents,
    EncoderInfo,
    Manifest,
    RecordSet,
    RecordSplit,
    write_manifest,
    write_shard,
)
from clipsep_jax.errors import InputError
from tests.data.test_record import assert_same, make_record

CONTENTS = Contents(frozenset({"dog", "cat"}), 4)


def write_set(folder: Path, num_shards: int = 2, num_records: int = 3, **fields) -> list[Record]:
    records = [make_record(seed) for seed in range(num_shards * num_records)]
    shards = tuple(
        write_shard(folder / f"train-{n:05d}.tfrecord", records[n * num_records : (n + 1) * num_records])
        for n in range(num_shards)
    )
    counts = {"inputs": len(records), "accepted": len(records), "rejected": 0}
    manifest = Manifest(
        counts, {"dog": 2, "cat": 2}, {"train": shards}, EncoderInfo("clip", "00", 4), "ff", ("clipsep",)
    )
    write_manifest(folder, replace(manifest, **fields))
    return records


# An independent reading of TFRecord framing, with its CRC-32C bit by bit.


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def unframe(data: bytes) -> list[bytes]:
    payloads, file = [], io.BytesIO(data)
    while header := file.read(8):
        (length,) = struct.unpack("<Q", header)
        assert struct.unpack("<I", file.read(4)) == (masked(crc32c(header)),)
        payloads.append(file.read(length))
        assert struct.unpack("<I", file.read(4)) == (masked(crc32c(payloads[-1])),)
    return payloads


def test_independent_checksum_has_the_known_value():
    assert crc32c(b"123456789") == 0xE3069283


def test_shard_has_the_framing_of_a_tfrecord_file(tmp_path):
    records = [make_record(seed) for seed in range(3)]
    shard = write_shard(tmp_path / "a.tfrecord", records)
    data = (tmp_path / "a.tfrecord").read_bytes()
    assert unframe(data) == [encode_record(record) for record in records]
    assert (shard.num_records, shard.num_bytes) == (3, len(data))


def test_golden_bytes_of_a_shard(tmp_path):
    record = Record("a", "", np.array([1, -2], np.int16), (b"J",))
    write_shard(tmp_path / "a.tfrecord", [record])
    golden = (
        "8c00000000000000f7a036e70a89010a110a05617564696f12080a060a040100feff0a150a08656e636f64696e6712090a07"
        "0a0570636d31360a0f0a066672616d657312050a030a014a0a0b0a02696412050a030a01610a0d0a056c6162656c12040a02"
        "0a000a180a0e73616d706c655f726174655f687a12061a040a02807d0a160a0d7374696c6c5f7069637475726512051a030a"
        "01006fea674d"
    )
    assert (tmp_path / "a.tfrecord").read_bytes().hex() == golden


def test_a_file_name_that_is_not_utf8_survives(tmp_path):
    record = replace(make_record(), id=b"\xff.mp4".decode("utf-8", "surrogateescape"))
    shard = write_shard(tmp_path / "a.tfrecord", [record])
    split = RecordSplit(tmp_path, "train", [shard], CONTENTS)
    assert split[0].id == split.entries[0].id == record.id


def test_random_access_equals_the_order_of_writing(tmp_path):
    records = write_set(tmp_path)
    split = RecordSet(tmp_path).split("train")
    assert len(split) == 6
    for index in (5, 0, 3, 3, 1, 4, 2, -1):
        assert_same(split[index], records[index])
    for entry, record in zip(split.entries, records, strict=True):
        assert (entry.id, entry.label) == (record.id, record.label)
        assert (entry.num_frames, entry.num_samples) == (len(record.frames), len(record.audio))
    with pytest.raises(IndexError):
        split[6]


def test_reading_from_many_threads_and_after_pickling(tmp_path):
    records = write_set(tmp_path)
    split = pickle.loads(pickle.dumps(RecordSet(tmp_path).split("train")))
    order = np.random.default_rng(0).integers(0, 6, 300).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, record in zip(order, pool.map(split.__getitem__, order), strict=True):
            assert record.id == records[index].id


def test_split_without_frames(tmp_path):
    records = write_set(tmp_path)
    split = RecordSet(tmp_path).split("train", with_frames=False)
    assert_same(split[4], replace(records[4], frames=()))


def test_repr_tells_content_not_place(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    write_set(tmp_path / "a")
    write_set(tmp_path / "b")
    write_set(tmp_path / "c", num_shards=3, num_records=2)
    first, second, other = (repr(RecordSet(tmp_path / name).split("train")) for name in ("a", "b", "c"))
    assert first == second != other


def test_any_flipped_bit_is_found(tmp_path):
    shard = write_shard(tmp_path / "a.tfrecord", [make_record(seed, num_frames=1) for seed in range(2)])
    split = RecordSplit(tmp_path, "train", [shard], CONTENTS)
    good = (tmp_path / "a.tfrecord").read_bytes()
    start = split.entries[1].offset
    for position in [*range(start, start + 14), *range(start + 14, len(good), 97), *range(len(good) - 4, len(good))]:
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        (tmp_path / "a.tfrecord").write_bytes(damaged)
        assert split[0].id == "folder/clip-0.mp4"
        with pytest.raises(CorruptRecordError, match=r"a\.tfrecord: record 1 is damaged"):
            split[1]


def test_a_shard_truncated_while_in_use_is_found(tmp_path):
    write_set(tmp_path)
    split = RecordSet(tmp_path).split("train")
    path = tmp_path / "train-00001.tfrecord"
    path.write_bytes(path.read_bytes()[:-1])
    assert split[4].id == "folder/clip-4.mp4"
    with pytest.raises(CorruptRecordError, match=r"train-00001\.tfrecord: record 2 is damaged \(the file ends"):
        split[5]


def drop_last_line(path: Path) -> None:
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("train-00000.tfrecord", Path.unlink, "is missing"),
        ("train-00000.tfrecord.index.jsonl", Path.unlink, "is missing"),
        ("train-00000.tfrecord", lambda path: path.write_bytes(b""), "3 records in 0 bytes, but the manifest"),
        ("train-00000.tfrecord.index.jsonl", drop_last_line, "2 records in"),
        ("train-00000.tfrecord.index.jsonl", lambda path: path.write_text("{}\n"), "not an index"),
        ("train-00000.tfrecord.index.jsonl", lambda path: path.write_text("x"), "not an index"),
    ],
)
def test_files_that_disagree_with_the_manifest_are_refused_at_opening(tmp_path, name, change, words):
    write_set(tmp_path)
    change(tmp_path / name)
    with pytest.raises(InputError, match=words):
        RecordSet(tmp_path).split("train")


def test_manifest_round_trip_and_schema(tmp_path):
    write_set(tmp_path)
    records = RecordSet(tmp_path)
    assert records.splits == ("train",)
    assert records.labels == ("cat", "dog")
    assert (records.query_size, records.encoder) == (4, EncoderInfo("clip", "00", 4))
    fields = json.loads((tmp_path / "manifest.json").read_text())
    assert {name: fields[name] for name in ("schema", "sample_rate_hz", "frames_per_second", "frame_size")} == {
        "schema": 2,
        "sample_rate_hz": 16_000,
        "frames_per_second": 1,
        "frame_size": 224,
    }
    assert fields["splits"]["train"]["num_records"] == 6
    assert fields["splits"]["train"]["shards"][0].keys() == {"name", "num_records", "num_bytes", "sha256"}
    assert fields["command"] == ["clipsep"]


def test_records_without_embeddings_have_no_query_size(tmp_path):
    write_set(tmp_path, encoder=None)
    assert RecordSet(tmp_path).query_size is None


def test_missing_and_unknown_things_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="clipsep prepare"):
        RecordSet(tmp_path / "nowhere")
    write_set(tmp_path)
    with pytest.raises(InputError, match="no split 'test'; it has train"):
        RecordSet(tmp_path).split("test")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda fields: fields | {"schema": 1}, "schema 1, but this version reads 2"),
        (lambda fields: {"schema": 2}, "not a manifest"),
        (lambda fields: [], "not a manifest"),
        (lambda fields: fields | {"splits": {"train": {"shards": [{"name": "x"}]}}}, "not a manifest"),
        (lambda fields: fields | {"encoder": "clip"}, "not a manifest"),
        (lambda fields: fields | {"sample_rate_hz": 44_100}, "sample_rate_hz is 44100, not 16000"),
        (lambda fields: fields | {"frame_size": None}, "frame_size is None, not 224"),
    ],
)
def test_a_bad_manifest_is_an_input_error(tmp_path, change, words):
    write_set(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=words):
        RecordSet(tmp_path)


@pytest.mark.parametrize("name", ["train.partial", "label_embeddings.safetensors", "manifest.json", "\ud800.tfrecord"])
def test_a_shard_has_a_name_that_no_other_file_has(tmp_path, name):
    write_set(tmp_path, splits={"train": (Shard(name, 1, 1, "00"),)})
    with pytest.raises(InputError, match=r"is not (the name of one shard|a file in its folder)"):
        RecordSet(tmp_path)
    one = Shard("a.tfrecord", 1, 1, "00")
    write_set(tmp_path, splits={"train": (one,), "test": (one,)})
    with pytest.raises(InputError, match=r"'a\.tfrecord' is not the name of one shard"):
        RecordSet(tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "", ".", "..", "a\0b"])
@pytest.mark.parametrize("field", ["splits", "other_files"])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path, field, name):
    write_set(
        tmp_path, **{field: {"splits": {"train": (Shard(name, 1, 1, "00"),)}, "other_files": {name: "00"}}[field]}
    )
    with pytest.raises(InputError, match="not a manifest"):
        RecordSet(tmp_path)


def test_split_is_a_data_source_for_grain(tmp_path):
    import grain

    records = write_set(tmp_path)
    dataset = grain.MapDataset.source(RecordSet(tmp_path).split("train")).shuffle(seed=1)
    assert sorted(dataset[index].id for index in range(6)) == [record.id for record in records]
