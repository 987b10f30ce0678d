"""The index of a shard: a line for each record, so that any one can be read, and what is used of it checked."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipsep_jax.data.record import Record
from clipsep_jax.data.stored import IndexLine, Parts, parts_of
from clipsep_jax.data.tfrecord import FRAMING_BYTES
from clipsep_jax.errors import InputError
from clipsep_jax.files import MOST_LIST_BYTES, check_is_file, decode_json_lines, encode_json, read_json_lines

MOST_RECORD_BYTES = 256 * 2**20  # of one clip


@dataclass(frozen=True)
class Shard:
    """What the manifest knows of one shard file."""

    name: str
    num_records: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class IndexEntry(IndexLine):
    """A line of an index, and where the record is."""

    shard: str = ""  # name of the file
    number: int = 0  # of the record in its shard


def index_path(shard: Path) -> Path:
    """The path of a shard's index."""
    return shard.with_name(shard.name + ".index.jsonl")


def index_line(record: Record, offset: int, data: bytes, *, in_parts: bool = True) -> bytes:
    """The line of the index for a record that is serialized as `data` and framed at `offset`.

    Args:
        in_parts: whether it tells of the record's parts, which older indexes do not.
    """
    line = IndexLine(offset, len(data), record.id, record.label, record.num_frames, len(record.audio))
    parts = parts_of(record, line, data) if in_parts else None
    values = {name: value for name, value in asdict(line).items() if name != "parts"}
    return encode_json(values | {"parts": asdict(parts)} if parts else values)


_NUMBERS = ("offset", "length", "num_frames", "num_samples")
_PART_NUMBERS = ("audio", "embeddings", "query_size")
_NO_PARTS = {"audio": -1, "embeddings": None, "query_size": None, "checks": ""}


class _Table:
    """The lines of a shard's index in columns.

    Attributes:
        numbers: [n, 8]; those of the line, those of its parts (-1 for None), and 1 where it has parts.
        texts: ids, labels and checks of the parts.
    """

    def __init__(self, lines: Sequence[dict[str, Any]]):
        """Take lines as decoded from JSON.

        Raises:
            AttributeError, KeyError, OverflowError, TypeError, ValueError: one has not the fields of an `IndexLine`.
        """
        parts = [_NO_PARTS if line.get("parts") is None else line["parts"] for line in lines]
        if any(len(line) != 6 + ("parts" in line) for line in lines) or any(len(part) != 4 for part in parts):
            raise ValueError("a line has other fields")
        numbers = [[line[name] for line in lines] for name in _NUMBERS]
        numbers += [[-1 if part[name] is None else part[name] for part in parts] for name in _PART_NUMBERS]
        texts = [[line["id"] for line in lines], [line["label"] for line in lines], [part["checks"] for part in parts]]
        numbers.append([int(part is not _NO_PARTS) for part in parts])
        for kind, columns in ((int, numbers), (str, texts)):
            if any({*map(type, column)} - {kind} for column in columns):
                raise TypeError("a field is of another type")
        self.numbers, self.texts = np.array(numbers, np.int64).T, texts

    def tiles(self, num_bytes: int) -> bool:
        """Whether records follow each other without a gap, up to the end of their shard."""
        values = self.numbers[:, : len(_NUMBERS)]
        offsets, lengths = values[:, 0], values[:, 1]
        ends = np.append(0, np.cumsum(np.minimum(lengths, num_bytes) + FRAMING_BYTES))  # without an overflow
        return bool(values.min(initial=0) >= 0 and ends[-1] == num_bytes and np.array_equal(offsets, ends[:-1]))


class Entries(Sequence[IndexEntry]):
    """The lines of the indexes of some shards, one after the other.

    They are kept in columns, since as objects those of 200,000 clips take ten seconds to make, and eight to send to
    another process.
    """

    def __init__(self, tables: dict[str, _Table]):
        """Join the tables of shards, by name."""
        self._shards = tuple(tables)
        sizes = [len(table.numbers) for table in tables.values()]
        self._starts = [sum(sizes[:place]) for place in range(len(sizes))]
        self._numbers = np.concatenate([_Table([]).numbers, *(table.numbers for table in tables.values())])
        self._texts = [[text for table in tables.values() for text in table.texts[column]] for column in range(3)]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        offset, length, num_frames, num_samples, audio, *embedded, has_parts = self._numbers[number].tolist()
        id, label, checks = (column[number] for column in self._texts)
        embeddings, query_size = (None if value < 0 else value for value in embedded)
        parts = Parts(audio, embeddings, query_size, checks) if has_parts else None
        place = bisect_right(self._starts, number) - 1
        within = number - self._starts[place]
        return IndexEntry(offset, length, id, label, num_frames, num_samples, parts, self._shards[place], within)


def read_index(folder: Path, shards: Sequence[Shard]) -> Entries:
    """The records of some shards, by their indexes.

    Raises:
        InputError: a shard or its index is missing, or is not what the manifest says.
    """
    return Entries({shard.name: _read_table(folder, shard) for shard in shards})


def _read_table(folder: Path, shard: Shard) -> _Table:
    path = index_path(folder / shard.name)
    try:
        size = (folder / shard.name).stat().st_size
        table = _decoded(path)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing; restore it or prepare the records again.") from error
    count = len(table.numbers)
    if (count, size) != (shard.num_records, shard.num_bytes):
        text = f"{count} records in {size} bytes, but the manifest says {shard.num_records} in {shard.num_bytes}"
        raise InputError(f"{folder / shard.name} has {text}; restore the file or prepare the records again.")
    if not table.tiles(size):
        raise InputError(f"{path} points outside of its shard; restore it or prepare the records again.")
    if table.numbers[:, 1].max(initial=0) > MOST_RECORD_BYTES:
        raise InputError(f"{path} names a record above {MOST_RECORD_BYTES >> 20} MiB; prepare shorter clips.")
    return table


def _decoded(path: Path) -> _Table:
    """The lines of an index: all at once where each is as it should be, else one by one, to tell which is not."""
    otherwise = "is not an index of records; restore it or prepare the records again."
    check_is_file(path, MOST_LIST_BYTES)
    try:
        return _Table(decode_json_lines(path.read_bytes()))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, RecursionError):
        return _Table([asdict(line) for line in read_json_lines(path, otherwise, IndexLine)])
