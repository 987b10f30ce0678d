import io
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipsep_jax.data.record import CorruptRecordError, Record, decode_frame, decode_record, encode_record
from clipsep_jax.data.tfrecord import Example


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


# The protobuf wire format, by hand.


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def feature(name: bytes, kind: int, values: bytes) -> bytes:
    return field(1, field(1, name) + field(2, field(kind, values)))


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
    with pytest.raises(CorruptRecordError, match="not a readable record"):
        decode_record(data)


def jpeg_of(picture: Image.Image, format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return buffer.getvalue()


def test_decode_frame():
    pixels = decode_frame(jpeg_of(Image.new("RGB", (224, 224), (200, 10, 60))))
    assert pixels.shape == (224, 224, 3)
    assert np.abs(pixels.astype(int) - (200, 10, 60)).max() <= 2
    assert decode_frame(jpeg_of(Image.new("L", (224, 224), 7))).shape == (224, 224, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        jpeg_of(Image.new("RGB", (224, 224)))[:100],
        jpeg_of(Image.new("RGB", (224, 224)), "PNG"),
        jpeg_of(Image.new("RGB", (224, 223))),
        jpeg_of(Image.new("L", (4097, 1))),
    ],
)
def test_decode_frame_refuses_other_bytes_and_sizes(data):
    with pytest.raises(CorruptRecordError, match="stored picture"):
        decode_frame(data)
