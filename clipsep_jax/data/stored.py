"""A record of which only what is used is read, and checked: its index holds a checksum of each part of it."""

import base64
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import google_crc32c
import numpy as np

from clipsep_jax.data.record import CorruptRecordError, Record
from clipsep_jax.data.tfrecord import HEADER_BYTES, places_of_bytes
from clipsep_jax.files import encode_json

PART_BYTES = 2**15
_DTYPES = {name: np.dtype(name) for name in ("<i2", "<f4")}


@dataclass(frozen=True, slots=True)
class Parts:
    """Where a record holds what training reads, and checksums of its parts.

    `checks` are of 32 bits each, little-endian, in base64: the CRC-32C of each PART_BYTES of the serialized record, and
    that of the line of the index itself, without them.
    """

    audio: int  # bytes of the serialized record before its samples, of 16 bits
    embeddings: int | None  # bytes before its embeddings
    query_size: int | None  # of an embedding
    checks: str = ""


@dataclass(frozen=True, slots=True)
class IndexLine:
    """One line of a shard's index."""

    offset: int  # bytes before the record's framing
    length: int  # bytes of the serialized record, without its framing
    id: str
    label: str
    num_frames: int
    num_samples: int
    parts: Parts | None = None  # by which a part of it can be read; None in older indexes, and of compressed samples


def parts_of(record: Record, line: IndexLine, data: bytes) -> Parts | None:
    """The parts of a serialized record, by its line of the index; None if its samples are compressed."""
    places = places_of_bytes(data)
    start, length = places["audio"]
    if length != 2 * len(record.audio):
        return None
    parts = Parts(start, None, None)
    if record.frame_embeddings is not None:
        parts = Parts(start, places["frame_embeddings"][0], record.frame_embeddings.shape[1])
    sums = [google_crc32c.value(data[begin : begin + PART_BYTES]) for begin in range(0, len(data), PART_BYTES)]
    sums.append(_line_check(line, parts))
    return replace(parts, checks=base64.b64encode(np.array(sums, "<u4").tobytes()).decode())


def _line_check(line: IndexLine, parts: Parts) -> int:
    values = [line.offset, line.length, line.id, line.label, line.num_frames, line.num_samples]
    return google_crc32c.value(encode_json([*values, parts.audio, parts.embeddings, parts.query_size]))


class StoredArray:
    """Rows that are read when they are asked for, by a slice or an array of their numbers."""

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        damaged: Callable[[str], CorruptRecordError],
        start: int,
        num_rows: int,
        row_shape: tuple[int, ...],
        dtype: str,
    ):
        self._read, self._damaged, self._start, self._num_rows = read, damaged, start, num_rows
        self._row_shape, self._dtype = row_shape, _DTYPES[dtype]
        self._row_bytes = self._dtype.itemsize * math.prod(row_shape)

    def __len__(self) -> int:
        return self._num_rows

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._num_rows, *self._row_shape)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            first, last, _ = rows.indices(self._num_rows)
            return self._rows(first, max(first, last))
        first = int(rows.min())
        return self._rows(first, int(rows.max()) + 1)[rows - first]

    def _rows(self, first: int, last: int) -> np.ndarray:
        begin = self._start + first * self._row_bytes
        data = self._read(begin, begin + (last - first) * self._row_bytes)
        values = np.frombuffer(data, self._dtype).reshape(-1, *self._row_shape)
        if self._dtype.kind == "f" and not np.isfinite(values).all():
            raise self._damaged("its embeddings hold numbers that are not finite")
        return values


class StoredRecord:
    """A record without its pictures, of which nothing is read before it is asked for.

    Attributes:
        id, label, num_frames: see `Record`.
        audio, frame_embeddings: the same arrays, to be cut or indexed.
        num_bytes_read: so far.
    """

    frames: tuple[bytes, ...] = ()
    num_bytes_read = 0

    def __init__(self, path: Path, line: IndexLine, number: int, parts: Parts):
        """A record by the line of its shard's index.

        Args:
            number: of the record in its shard.

        Raises:
            ValueError: the line is not as it was written.
        """
        self.id, self.label, self.num_frames = line.id, line.label, line.num_frames
        self._path, self._line = path, line
        checks = np.frombuffer(base64.b64decode(parts.checks, validate=True), "<u4")
        if len(checks) != -(-line.length // PART_BYTES) + 1 or checks[-1] != _line_check(line, parts):
            raise ValueError("its line in the index is wrong")
        self._number, self._checks = number, checks[:-1]
        self.audio = StoredArray(self._read, self._damaged, parts.audio, line.num_samples, (), "<i2")
        self.frame_embeddings: StoredArray | None = None
        if parts.embeddings is not None and parts.query_size is not None:
            size = parts.query_size
            self.frame_embeddings = StoredArray(
                self._read, self._damaged, parts.embeddings, self.num_frames, (size,), "<f4"
            )

    def _read(self, begin: int, end: int) -> bytes:
        """Some bytes of the serialized record, out of whole parts.

        Raises:
            CorruptRecordError: a part is not as it was written.
        """
        if not 0 <= begin <= end <= self._line.length:
            raise self._damaged("its index points outside of it")
        first, last = begin // PART_BYTES, -(-end // PART_BYTES)
        start = first * PART_BYTES
        length = min(last * PART_BYTES, self._line.length) - start
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            data = os.pread(descriptor, length, self._line.offset + HEADER_BYTES + start)
        finally:
            os.close(descriptor)
        self.num_bytes_read += len(data)
        for number in range(first, last):
            part = data[number * PART_BYTES - start : (number + 1) * PART_BYTES - start]
            if google_crc32c.value(part) != self._checks[number]:
                raise self._damaged("its checksum is wrong")
        return data[begin - start : end - start]

    def _damaged(self, reason: str) -> CorruptRecordError:
        where = f"{self._path}: record {self._number}"
        return CorruptRecordError(f"{where} is damaged ({reason}); restore the file or prepare it again.", reason)
