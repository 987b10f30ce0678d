import io
import json
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipsep_jax.records import (
    CorruptRecordError,
    EncoderInfo,
    Example,
    Manifest,
    Record,
    RecordSet,
    RecordSplit,
    Shard,
    atomic_write,
    decode_frame,
    decode_record,
    encode_record,
    write_manifest,
    write_shard,
)
from clipsep_jax.structures import InputError


def make_record(seed: int = 0, num_frames: int = 3, embedded: bool = True) -> Record:
    rng = np.random.default_rng(seed)
    return Record(
        id=f"folder/clip-{seed}.mp4",
        label=("dog", "cat", "")[seed % 3],
        audio=rng.integers(-(2**15), 2**15, 1000 + seed, dtype=np.int16),
        frames=tuple(rng.bytes(50 + i) for i in range(num_frames)),
        frame_embeddings=rng.normal(size=(num_frames, 4)).astype(np.float32) if embedded else None,
    )


def assert_same(first: Record, second: Record) -> None:
    assert (first.id, first.label, first.frames) == (second.id, second.label, second.frames)
    assert first.audio.dtype == second.audio.dtype == np.int16
    np.testing.assert_array_equal(first.audio, second.audio)
    assert (first.frame_embeddings is None) == (second.frame_embeddings is None)
    if first.frame_embeddings is not None:
        np.testing.assert_array_equal(first.frame_embeddings, second.frame_embeddings)


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


# An independent reading of the formats: CRC-32C bit by bit, TFRecord framing, and the protobuf wire format by hand.


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


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def feature(name: bytes, kind: int, values: bytes) -> bytes:
    return field(1, field(1, name) + field(2, field(kind, values)))


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


def test_record_is_a_tensorflow_example_on_the_wire():
    record = Record(
        id="a/é.mp4",
        label="dog",
        audio=np.array([1, -2, 300], np.int16),
        frames=(b"first", b"second"),
        frame_embeddings=np.array([[1.0], [-0.5]], np.float32),
    )
    features = (
        feature(b"audio", 1, field(1, bytes.fromhex("0100feff2c01")))
        + feature(b"encoding", 1, field(1, b"pcm16"))
        + feature(b"frame_embeddings", 1, field(1, struct.pack("<2f", 1.0, -0.5)))
        + feature(b"frames", 1, field(1, b"first") + field(1, b"second"))
        + feature(b"id", 1, field(1, "a/é.mp4".encode()))
        + feature(b"label", 1, field(1, b"dog"))
        + feature(b"query_size", 3, field(1, varint(1)))
        + feature(b"sample_rate_hz", 3, field(1, varint(16_000)))
        + feature(b"still_picture", 3, field(1, varint(0)))
    )
    assert encode_record(record) == field(1, features)
    # Features of other programs, floats among them, do no harm.
    foreign = feature(b"extra", 2, field(1, struct.pack("<2f", 0.25, 4.0)))
    assert_same(decode_record(field(1, foreign + features)), record)
    parsed = Example.FromString(field(1, foreign))
    assert list(parsed.features.feature["extra"].float_list.value) == [0.25, 4.0]


@pytest.mark.parametrize("record", [make_record(), make_record(1, embedded=False), make_record(2, num_frames=1)])
def test_round_trip(record):
    assert_same(decode_record(encode_record(record)), record)
    bare = decode_record(encode_record(record), with_frames=False)
    assert_same(bare, replace(record, frames=()))


def test_a_file_name_that_is_not_utf8_survives(tmp_path):
    record = replace(make_record(), id=b"\xff.mp4".decode("utf-8", "surrogateescape"))
    shard = write_shard(tmp_path / "a.tfrecord", [record])
    split = RecordSplit(tmp_path, "train", [shard])
    assert split[0].id == split.entries[0].id == record.id


def test_encoding_refuses_other_types_and_counts():
    record = make_record()
    object.__setattr__(record, "audio", record.audio.astype(np.float32))
    with pytest.raises(TypeError):
        encode_record(record)
    with pytest.raises(ValueError, match="3 embeddings for 2 pictures"):
        encode_record(replace(make_record(), frames=(b"a", b"b")))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff",
        b"",
        encode_record(make_record())[:-7],
        encode_record(make_record()).replace(b"query_size", b"query_sizf"),
        encode_record(make_record()).replace(b"audio", b"audix"),
        encode_record(make_record()).replace(varint(16_000), varint(16_001)),
    ],
)
def test_bytes_that_are_no_record_are_named_so(data):
    with pytest.raises(CorruptRecordError, match="no readable record"):
        decode_record(data)


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
    split = RecordSplit(tmp_path, "train", [shard])
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
        ("train-00000.tfrecord.index.jsonl", lambda path: path.write_text("{}\n"), "no index"),
        ("train-00000.tfrecord.index.jsonl", lambda path: path.write_text("x"), "no index"),
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
        (lambda fields: {"schema": 2}, "no manifest"),
        (lambda fields: [], "no manifest"),
        (lambda fields: fields | {"splits": {"train": {"shards": [{"name": "x"}]}}}, "no manifest"),
        (lambda fields: fields | {"encoder": "clip"}, "no manifest"),
    ],
)
def test_a_bad_manifest_is_an_input_error(tmp_path, change, words):
    write_set(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=words):
        RecordSet(tmp_path)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    write_set(tmp_path, splits={"train": (Shard("../secret", 1, 1, "00"),)})
    with pytest.raises(InputError, match="no manifest"):
        RecordSet(tmp_path)


def jpeg_of(picture: Image.Image, format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return buffer.getvalue()


def test_decode_frame():
    pixels = decode_frame(jpeg_of(Image.new("RGB", (30, 20), (200, 10, 60))))
    assert pixels.shape == (20, 30, 3)
    assert np.abs(pixels.astype(int) - (200, 10, 60)).max() <= 2
    assert decode_frame(jpeg_of(Image.new("L", (8, 8), 7))).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        jpeg_of(Image.new("RGB", (64, 64)))[:100],
        jpeg_of(Image.new("RGB", (8, 8)), "PNG"),
        jpeg_of(Image.new("L", (4097, 1))),
    ],
)
def test_decode_frame_refuses_other_bytes_and_giant_pictures(data):
    with pytest.raises(CorruptRecordError, match="stored picture"):
        decode_frame(data)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_split_is_a_data_source_for_grain(tmp_path):
    import grain

    records = write_set(tmp_path)
    dataset = grain.MapDataset.source(RecordSet(tmp_path).split("train")).shuffle(seed=1)
    assert sorted(dataset[index].id for index in range(6)) == [record.id for record in records]
