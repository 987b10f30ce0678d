"""The index of a shard: a line for each record, so that any one can be read, and what is used of it checked."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from clipsep_jax.data.record import Record
from clipsep_jax.data.stored import IndexLine, parts_of
from clipsep_jax.data.tfrecord import FRAMING_BYTES
from clipsep_jax.errors import InputError
from clipsep_jax.files import encode_json, read_json_lines

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


def read_index(folder: Path, shard: Shard) -> list[IndexEntry]:
    """The records of a shard, by its index.

    Raises:
        InputError: the shard or its index is missing, or is not what the manifest says.
    """
    path = index_path(folder / shard.name)
    otherwise = "is not an index of records; restore it or prepare the records again."
    try:
        size = (folder / shard.name).stat().st_size
        lines = read_json_lines(path, otherwise, IndexLine)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing; restore it or prepare the records again.") from error
    if (len(lines), size) != (shard.num_records, shard.num_bytes):
        text = f"{len(lines)} records in {size} bytes, but the manifest says {shard.num_records} in {shard.num_bytes}"
        raise InputError(f"{folder / shard.name} has {text}; restore the file or prepare the records again.")
    if not _tile(lines, size):
        raise InputError(f"{path} points outside of its shard; restore it or prepare the records again.")
    if any(line.length > MOST_RECORD_BYTES for line in lines):
        raise InputError(f"{path} names a record above {MOST_RECORD_BYTES >> 20} MiB; prepare shorter clips.")
    names = [field.name for field in fields(IndexLine)]
    return [
        IndexEntry(**{name: getattr(line, name) for name in names}, shard=shard.name, number=number)
        for number, line in enumerate(lines)
    ]


def _tile(lines: Iterable[IndexLine], num_bytes: int) -> bool:
    """Whether records follow each other without a gap, up to the end of their shard."""
    end = 0
    for line in lines:
        if line.offset != end or min(line.length, line.num_frames, line.num_samples) < 0:
            return False
        end += line.length + FRAMING_BYTES
    return end == num_bytes
