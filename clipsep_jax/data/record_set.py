"""Folders of records: shards in TFRecord framing, an offset index of each, and a manifest.

The format is described in docs/records.md. TensorFlow is neither needed nor imported.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.data import tfds
from clipsep_jax.data.record import (
    FRAME_SIZE,
    FRAMES_PER_SECOND,
    CorruptRecordError,
    Record,
    decode_frame,
    decode_record,
    encode_record,
)
from clipsep_jax.data.tfrecord import FRAMING_BYTES, framed, unframed
from clipsep_jax.errors import InputError
from clipsep_jax.files import atomic_write, encode_json, is_file_name, read_json, read_json_lines, write_json

SCHEMA_VERSION = 2

MANIFEST_NAME = "manifest.json"
LABEL_EMBEDDINGS_NAME = "label_embeddings.safetensors"
EMBEDDING_NAME = "embedding.partial"  # a folder beside the shards, while they are rewritten


@dataclass(frozen=True)
class Shard:
    """What the manifest knows of one shard file."""

    name: str
    num_records: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of a shard's index, and its position."""

    shard: str  # name of the file
    number: int  # of the record in its shard
    offset: int  # bytes before the record's framing
    length: int  # bytes of the serialized record, without its framing
    id: str
    label: str
    num_frames: int
    num_samples: int


def index_path(shard: Path) -> Path:
    """The path of a shard's index."""
    return shard.with_name(shard.name + ".index.jsonl")


class ShardWriter:
    """Writes records into a shard and their offset index, as a context manager; see `write_shard`.

    Attributes:
        shard: what was written, once the context is left without an error.
    """

    shard: "Shard"

    def __init__(self, path: Path, audio_encoding: str = "pcm16"):
        self._path, self._audio_encoding = path, audio_encoding
        self._digest, self._offset, self._lines = hashlib.sha256(), 0, list[bytes]()
        self._file = atomic_write(path)

    def __enter__(self) -> "ShardWriter":
        self._stream = self._file.__enter__()
        return self

    def add(self, record: Record) -> None:
        """Write one more record."""
        data = encode_record(record, self._audio_encoding)
        record_bytes = framed(data)
        self._stream.write(record_bytes)
        self._digest.update(record_bytes)
        self._lines.append(index_line(record, self._offset, len(data)))
        self._offset += len(record_bytes)

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)
        if error[0] is None:
            with atomic_write(index_path(self._path)) as file:
                file.writelines(self._lines)
            self.shard = Shard(self._path.name, len(self._lines), self._offset, self._digest.hexdigest())


def write_shard(path: Path, records: Iterable[Record], audio_encoding: str = "pcm16") -> Shard:
    """Write records into the shard `path` and their offset index beside it, each complete or not at all."""
    with ShardWriter(path, audio_encoding) as writer:
        for record in records:
            writer.add(record)
    return writer.shard


def index_line(record: Record, offset: int, length: int) -> bytes:
    """The line of the index for a record of `length` bytes, framed at `offset`."""
    line = {"offset": offset, "length": length, "id": record.id, "label": record.label}
    return encode_json(line | {"num_frames": record.num_frames, "num_samples": len(record.audio)})


def _read_index(folder: Path, shard: Shard) -> list[IndexEntry]:
    path = index_path(folder / shard.name)
    otherwise = "is not an index of records; restore it or prepare the records again."
    try:
        size = (folder / shard.name).stat().st_size
        numbers = itertools.count()
        entries = read_json_lines(path, otherwise, lambda **line: IndexEntry(shard.name, next(numbers), **line))
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing; restore it or prepare the records again.") from error
    if (len(entries), size) != (shard.num_records, shard.num_bytes):
        text = f"{len(entries)} records in {size} bytes, but the manifest says {shard.num_records} in {shard.num_bytes}"
        raise InputError(f"{folder / shard.name} has {text}; restore the file or prepare the records again.")
    if not all(_lies_within(entry, size) for entry in entries):
        raise InputError(f"{path} points outside of its shard; restore it or prepare the records again.")
    return entries


def _lies_within(entry: IndexEntry, num_bytes: int) -> bool:
    numbers = (entry.offset, entry.length, entry.num_frames, entry.num_samples)
    sound = all(type(number) is int and number >= 0 for number in numbers)
    named = isinstance(entry.id, str) and isinstance(entry.label, str)
    return sound and named and entry.offset + entry.length + FRAMING_BYTES <= num_bytes


class RecordSplit:
    """Random access to the records of one split, in the order of its shards (`entries`): a data source for Grain.

    Reading is safe from many threads, and the object can be sent to other processes: it holds no open file.
    """

    def __init__(self, folder: Path, name: str, shards: Sequence[Shard], *, with_frames: bool = True) -> None:
        """Read the indexes of the shards; `with_frames=False` leaves the pictures out of the records.

        Raises:
            InputError: a shard or an index is missing, or is not what the manifest says.
        """
        self.name = name
        self.entries = [entry for shard in shards for entry in _read_index(folder, shard)]
        self.folder = folder
        self._with_frames = with_frames
        self._digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        # Says what is read, not where it lies, so that a data position saved on one machine is valid on another.
        return f"RecordSplit({self.name!r}, {len(self)} records, sha256 {self._digest[:16]})"

    def __getitem__(self, index: int) -> Record:
        """Read one record and check it.

        Raises:
            CorruptRecordError: its bytes changed since they were written.
            IndexError: there is no such record.
        """
        return self._read(index, self._with_frames, decode=False)

    def decoded(self, index: int) -> Record:
        """Read one record whose pictures are decoded too, to check them; see `__getitem__`."""
        return self._read(index, with_frames=True, decode=True)

    def _read(self, index: int, with_frames: bool, decode: bool) -> Record:
        entry = self.entries[index]
        with (self.folder / entry.shard).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), entry.length + FRAMING_BYTES, entry.offset)
        where = f"{self.folder / entry.shard}: record {entry.number}"
        try:
            record = decode_record(unframed(data, entry.length), with_frames=with_frames)
            for jpeg in record.frames if decode else ():
                decode_frame(jpeg)
            return record
        except CorruptRecordError as error:
            raise CorruptRecordError(f"{where}: {error}", error.reason) from error
        except ValueError as error:
            message = f"{where} is damaged ({error}); restore the file or prepare the records again."
            raise CorruptRecordError(message, str(error)) from None


@dataclass(frozen=True)
class EncoderInfo:
    """Which encoder made the embeddings of a set of records."""

    name: str
    sha256: str
    query_size: int


@dataclass(frozen=True)
class Manifest:
    """What a folder of records holds."""

    counts: dict[str, int]  # of "inputs", "accepted" and "rejected" clips
    labels: dict[str, int]  # records of each known label
    splits: dict[str, tuple[Shard, ...]]
    encoder: EncoderInfo | None  # None where the records have no embeddings
    inputs_sha256: str  # fingerprint of the inputs and options that the records were prepared from
    command: tuple[str, ...] = ()  # that prepared them
    audio_encoding: str = "pcm16"  # or "flac"
    other_files: dict[str, str] = field(default_factory=dict)  # SHA-256 of the ledger and the label embeddings


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` of a folder of records, last, since it marks the folder as complete.

    Just before, it writes what TensorFlow Datasets needs.
    """
    for name, content in tfds_files(manifest).items():
        with atomic_write(folder / name) as file:
            file.write(content)
    splits = {
        name: {"num_records": sum(shard.num_records for shard in shards), "shards": [asdict(shard) for shard in shards]}
        for name, shards in manifest.splits.items()
    }
    fixed = {"schema": SCHEMA_VERSION, "sample_rate_hz": SAMPLE_RATE_HZ}
    fixed |= {"frames_per_second": FRAMES_PER_SECOND, "frame_size": FRAME_SIZE}
    write_json(folder / MANIFEST_NAME, fixed | asdict(manifest) | {"splits": splits}, indent=1)


def tfds_files(manifest: Manifest) -> dict[str, bytes]:
    """What TensorFlow Datasets needs, by file name."""
    lengths = {name: [shard.num_records for shard in shards] for name, shards in manifest.splits.items()}
    num_bytes = {name: sum(shard.num_bytes for shard in shards) for name, shards in manifest.splits.items()}
    query_size = manifest.encoder.query_size if manifest.encoder else None
    return {
        tfds.FEATURES_NAME: tfds.features(manifest.audio_encoding, FRAME_SIZE, query_size),
        tfds.INFO_NAME: tfds.dataset_info(SCHEMA_VERSION, lengths, num_bytes),
    }


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a folder of records.

    Raises:
        InputError: the folder or its manifest is missing, damaged, or of another schema.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        todo = "finish `clipsep prepare embed`" if (folder / EMBEDDING_NAME).is_dir() else "run `clipsep prepare`"
        raise InputError(f"{folder} holds no complete records: there is no {MANIFEST_NAME}; {todo}.")
    otherwise = "is not a manifest of records; restore it or prepare the records again."
    fields = read_json(path, otherwise, dict)
    try:
        schema = fields["schema"]
        if schema == SCHEMA_VERSION:
            return _manifest(fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} {otherwise}") from error
    raise InputError(f"{path} has schema {schema}, but this version reads {SCHEMA_VERSION}; prepare the records again.")


def _manifest(fields: dict[str, Any]) -> Manifest:
    splits = {name: tuple(Shard(**shard) for shard in split["shards"]) for name, split in fields["splits"].items()}
    names = [shard.name for shards in splits.values() for shard in shards]
    if not all(map(is_file_name, [*names, *fields["other_files"]])):
        raise ValueError("a file lies outside the folder")
    return Manifest(
        counts=dict(fields["counts"]),
        labels=dict(fields["labels"]),
        splits=splits,
        encoder=EncoderInfo(**fields["encoder"]) if fields["encoder"] else None,
        inputs_sha256=fields["inputs_sha256"],
        command=tuple(fields["command"]),
        audio_encoding=fields["audio_encoding"],
        other_files=dict(fields["other_files"]),
    )


class RecordSet:
    """A folder of records, as `clipsep prepare` leaves it.

    Attributes:
        manifest: what the folder holds.
        splits: names of its splits.
        labels: the known labels, sorted.
        encoder: of the stored embeddings, and query_size their size; both None where there are none.
    """

    def __init__(self, folder: Path) -> None:
        """Read the manifest.

        Raises:
            InputError: the folder or its manifest is missing, damaged, or of another schema.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.splits = tuple(self.manifest.splits)
        self.labels = tuple(sorted(self.manifest.labels))
        self.encoder = self.manifest.encoder
        self.query_size = self.encoder.query_size if self.encoder else None

    def split(self, name: str, *, with_frames: bool = True) -> RecordSplit:
        """Open one split; an InputError lists the existing ones, or names a file that has changed."""
        if name not in self.manifest.splits:
            raise InputError(f"{self.folder} has no split {name!r}; it has {', '.join(self.splits)}.")
        return RecordSplit(self.folder, name, self.manifest.splits[name], with_frames=with_frames)
