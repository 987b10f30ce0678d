"""The TFRecord framing and the message `tf.train.Example`, without TensorFlow."""

import struct
from typing import Any

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import Message

_MASK_DELTA = 0xA282EAD8
_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")  # length and its checksum; checksum of the data
HEADER_BYTES = _HEADER.size
FRAMING_BYTES = HEADER_BYTES + _FOOTER.size

# Declared in a pool of its own, where it cannot clash with TensorFlow's registration.
_EXAMPLE_PROTO = """
name: "clipsep_jax/example.proto" package: "clipsep_jax" syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 type: TYPE_BYTES label: LABEL_REPEATED } }
message_type { name: "FloatList" field { name: "value" number: 1 type: TYPE_FLOAT label: LABEL_REPEATED } }
message_type { name: "Int64List" field { name: "value" number: 1 type: TYPE_INT64 label: LABEL_REPEATED } }
message_type {
  name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 type_name: "BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type_name: "FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type_name: "Int64List" oneof_index: 0 }
}
message_type {
  name: "Features" field { name: "feature" number: 1 type_name: "FeatureEntry" label: LABEL_REPEATED }
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type_name: "Feature" label: LABEL_OPTIONAL }
  }
}
message_type { name: "Example" field { name: "features" number: 1 type_name: "Features" } }
"""


def _example_class() -> type[Message]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_EXAMPLE_PROTO, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("clipsep_jax.Example"))


Example: Any = _example_class()


def _masked_crc32c(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def framed(data: bytes) -> bytes:
    """A serialized record with its length and checksums around it."""
    length = struct.pack("<Q", len(data))
    return length + _FOOTER.pack(_masked_crc32c(length)) + data + _FOOTER.pack(_masked_crc32c(data))


def unframed(data: bytes, length: int) -> bytes:
    """The serialized record of `length` bytes that is framed in `data`.

    Raises:
        ValueError: the framing or the record is not as it was written.
    """
    if len(data) != length + FRAMING_BYTES:
        raise ValueError("the file ends within it")
    stated, length_crc = _HEADER.unpack_from(data)
    if stated != length or _masked_crc32c(data[:8]) != length_crc:
        raise ValueError("its length is wrong")
    record = data[_HEADER.size : -_FOOTER.size]
    if _masked_crc32c(record) != _FOOTER.unpack(data[-_FOOTER.size :])[0]:
        raise ValueError("its checksum is wrong")
    return record


def places_of_bytes(example: bytes) -> dict[str, tuple[int, int]]:
    """Where a serialized Example holds the first byte string of each of its features: its start and length.

    Raises:
        ValueError: the bytes are not an Example.
    """
    places = {}
    try:
        for features in _fields(example, (0, len(example)), 1):
            for entry in _fields(example, features, 1):
                (name,), (value,) = _fields(example, entry, 1), _fields(example, entry, 2)
                for strings in _fields(example, value, 1):
                    first = next(iter(_fields(example, strings, 1)), None)
                    if first is not None:
                        key = example[name[0] : sum(name)].decode()
                        places[key] = first
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("it is not an Example") from error
    return places


def _fields(data: bytes, message: tuple[int, int], number: int) -> list[tuple[int, int]]:
    """Start and length of each field `number` of a message, itself given by start and length; all are of bytes."""
    at, end = message[0], sum(message)
    found = []
    while at < end:
        tag, at = _varint(data, at)
        length, at = _varint(data, at)
        if tag & 7 != 2 or at + length > end:
            raise ValueError("it is not an Example of byte strings")
        if tag >> 3 == number:
            found.append((at, length))
        at += length
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("it is not an Example")
