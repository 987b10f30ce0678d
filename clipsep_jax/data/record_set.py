"""Folders of records: shards in TFRecord framing, an offset index of each, and a manifest.

The format is described in docs/records.md. TensorFlow is neither needed nor imported.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.data import tfds
from clipsep_jax.data.index import IndexEntry, Shard, index_line, index_path, read_index
from clipsep_jax.data.record import (
    FRAME_SIZE,
    FRAMES_PER_SECOND,
    AudioEncoding,
    CorruptRecordError,
    Record,
    decode_frame,
    decode_record,
    encode_record,
)
from clipsep_jax.data.stored import IndexLine, StoredRecord
from clipsep_jax.data.tfrecord import FRAMING_BYTES, framed, unframed
from clipsep_jax.errors import InputError
from clipsep_jax.files import (
    atomic_write,
    check_json,
    is_file_name,
    read_json,
    write_json,
)
from clipsep_jax.schema import shown

SCHEMA_VERSION = 2

MANIFEST_NAME = "manifest.json"
LABEL_EMBEDDINGS_NAME = "label_embeddings.safetensors"
EMBEDDING_NAME = "embedding.partial"  # a folder beside the shards, while they are rewritten


class ShardWriter:
    """Writes records into a shard and their offset index, as a context manager; see `write_shard`.

    Attributes:
        shard: what was written, once the context is left without an error.
    """

    shard: "Shard"

    def __init__(self, path: Path, audio_encoding: AudioEncoding = "pcm16"):
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
        self._lines.append(index_line(record, self._offset, data))
        self._offset += len(record_bytes)

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)
        if error[0] is None:
            with atomic_write(index_path(self._path)) as file:
                file.writelines(self._lines)
            self.shard = Shard(self._path.name, len(self._lines), self._offset, self._digest.hexdigest())


def write_shard(path: Path, records: Iterable[Record], audio_encoding: AudioEncoding = "pcm16") -> Shard:
    """Write records into the shard `path` and their offset index beside it, each complete or not at all."""
    with ShardWriter(path, audio_encoding) as writer:
        for record in records:
            writer.add(record)
    return writer.shard


@dataclass(frozen=True)
class Contents:
    """What the records of a folder hold.

    Attributes:
        labels: that they may have.
        query_size: of the embeddings of their pictures; None if they have no embeddings.
    """

    labels: frozenset[str]
    query_size: int | None

    def check(self, record: Record | StoredRecord, line: IndexLine) -> None:
        """Check one record, read with or without its pictures.

        Raises:
            CorruptRecordError: it is not what its folder's manifest and index say.
        """
        fault = self._fault(record, line)
        if fault:
            raise CorruptRecordError(f"It does not suit its folder ({fault}); prepare the records again.", fault)

    def _fault(self, record: Record | StoredRecord, line: IndexLine) -> str:
        embeddings = record.frame_embeddings
        if not len(record.audio):
            return "it holds no audio"
        if (record.id, record.label, len(record.audio)) != (line.id, line.label, line.num_samples):
            return "its index tells something else"
        if record.label and record.label not in self.labels:
            return f"its label {shown(record.label)} is not in the manifest"
        if (record.frames or embeddings is not None) and record.num_frames != line.num_frames:
            return "its index tells another number of pictures"
        if embeddings is None:
            return "it holds no embeddings" if self.query_size is not None and line.num_frames else ""
        if embeddings.shape[1] != self.query_size:
            return f"its embeddings have size {embeddings.shape[1]}, not {self.query_size}"
        if isinstance(embeddings, np.ndarray) and not np.isfinite(embeddings).all():
            return "its embeddings hold numbers that are not finite"
        return ""


class RecordSplit:
    """Random access to the records of one split, in the order of its shards (`entries`): a data source for Grain.

    Reading is safe from many threads, and the object can be sent to other processes: it holds no open file.
    """

    def __init__(
        self, folder: Path, name: str, shards: Sequence[Shard], contents: Contents, *, with_frames: bool = True
    ) -> None:
        """Read the indexes of the shards; `with_frames=False` leaves the pictures out of the records.

        Raises:
            InputError: a shard or an index is missing, or is not what the manifest says.
        """
        self.name = name
        self.entries: Sequence[IndexEntry] = read_index(folder, shards)
        self._contents = contents
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
            CorruptRecordError: its bytes changed since they were written, or do not suit the folder.
            IndexError: there is no such record.
        """
        return self._read(index, self._with_frames, decode=False)

    def decoded(self, index: int) -> Record:
        """Read one record whose pictures are decoded too, to check them; see `__getitem__`."""
        return self._read(index, with_frames=True, decode=True)

    def clip(self, index: int) -> Record | StoredRecord:
        """One record, of which only what is asked for is read and checked, where its index and pictures allow that."""
        entry = self.entries[index]
        if entry.parts is None or self._with_frames:
            return self[index]
        with self._telling(entry):
            stored = StoredRecord(self.folder / entry.shard, entry, entry.number, entry.parts)
            self._contents.check(stored, entry)
            return stored

    def serialized(self, index: int) -> bytes:
        """The bytes of one record, checked; see `__getitem__`."""
        entry = self.entries[index]
        with (self.folder / entry.shard).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), entry.length + FRAMING_BYTES, entry.offset)
        with self._telling(entry):
            return unframed(data, entry.length)

    def _read(self, index: int, with_frames: bool, decode: bool) -> Record:
        entry, data = self.entries[index], self.serialized(index)
        with self._telling(entry):
            record = decode_record(data, with_frames=with_frames)
            self._contents.check(record, entry)
            for jpeg in record.frames if decode else ():
                decode_frame(jpeg)
            return record

    @contextmanager
    def _telling(self, entry: IndexEntry) -> Iterator[None]:
        """Name the record in the errors of reading it."""
        where = f"{self.folder / entry.shard}: record {entry.number}"
        try:
            yield
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
    audio_encoding: AudioEncoding = "pcm16"
    other_files: dict[str, str] = field(default_factory=dict)  # SHA-256 of the ledger and the label embeddings

    @property
    def contents(self) -> Contents:
        """What every record holds."""
        return Contents(frozenset(self.labels), self.encoder.query_size if self.encoder else None)


@dataclass(frozen=True)
class _StoredSplit:
    num_records: int
    shards: tuple[Shard, ...]


# What every manifest of this schema says.
_FIXED = {
    "schema": SCHEMA_VERSION,
    "sample_rate_hz": SAMPLE_RATE_HZ,
    "frames_per_second": FRAMES_PER_SECOND,
    "frame_size": FRAME_SIZE,
}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` of a folder of records, last, since it marks the folder as complete.

    Just before, it writes what TensorFlow Datasets needs.
    """
    for name, content in tfds_files(manifest).items():
        with atomic_write(folder / name) as file:
            file.write(content)
    splits = {
        name: asdict(_StoredSplit(sum(shard.num_records for shard in shards), shards))
        for name, shards in manifest.splits.items()
    }
    write_json(folder / MANIFEST_NAME, _FIXED | asdict(manifest) | {"splits": splits}, indent=1)


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
    schema = check_json(fields.get("schema"), path, otherwise, int, "schema")
    if schema != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema {schema}, but this version reads {SCHEMA_VERSION}; prepare the records again."
        )
    splits = check_json(fields.get("splits"), path, otherwise, dict[str, _StoredSplit], "splits")
    fields["splits"] = {name: split.shards for name, split in splits.items()}
    manifest = check_json({name: fields[name] for name in fields.keys() - _FIXED}, path, otherwise, Manifest)
    fault = _fault_of(manifest, fields)
    if fault:
        raise InputError(f"{path} {otherwise.removesuffix('.')} ({fault}).")
    return manifest


def _fault_of(manifest: Manifest, fields: dict) -> str:
    """What is wrong with a manifest whose values have the right types; empty if nothing is."""
    for name, value in _FIXED.items():
        if fields.get(name) != value:
            return f"{name} is {shown(fields.get(name))}, not {value}"
    shards = [shard.name for split in manifest.splits.values() for shard in split]
    for name in [*shards, *manifest.other_files]:
        if not is_file_name(name):
            return f"{shown(name)} is not a file in its folder"
    for name in shards:
        if not name.endswith(".tfrecord") or shards.count(name) > 1:
            return f"{shown(name)} is not the name of one shard"
    return ""


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
        shards, contents = self.manifest.splits[name], self.manifest.contents
        return RecordSplit(self.folder, name, shards, contents, with_frames=with_frames)
