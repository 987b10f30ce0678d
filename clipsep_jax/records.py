"""Records: one clip as a serialized `tf.train.Example`, shards in TFRecord framing, an offset index and a manifest.

The format is described in docs/records.md. TensorFlow is neither needed nor imported.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Float32, Int16, UInt8
from PIL import Image

from clipsep_jax import tfds_metadata
from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.files import atomic_write
from clipsep_jax.structures import InputError
from clipsep_jax.tfrecord import FRAMING_BYTES, Example, framed, unframed

SCHEMA_VERSION = 2

FRAMES_PER_SECOND = 1
FRAME_SIZE = 224

AUDIO_ENCODINGS = ("pcm16", "flac")

MANIFEST_NAME = "manifest.json"
LABEL_EMBEDDINGS_NAME = "label_embeddings.safetensors"
EMBEDDING_NAME = "embedding.partial"  # a folder beside the shards, while they are rewritten

_MAX_FRAME_SIDE = 4096  # pixels; a stored picture above it is taken for damage or an attack
_TEXT = ("utf-8", "surrogateescape")  # a file name need not be valid UTF-8
_MAX_FLAC_SAMPLES = 2**25  # of one clip, 35 minutes; FLAC can hold a lot of silence in a few bytes


class CorruptRecordError(InputError):
    """A stored record does not read back as it was written.

    Attributes:
        reason: in a few words, such as "its checksum is wrong".
    """

    def __init__(self, message: str, reason: str = "it is no record"):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Record:
    """One clip.

    Attributes:
        id: POSIX path of the clip relative to its folder.
        label: what is heard, "" where unknown.
        audio: 16-bit mono audio at 16 kHz; sample 0 is time 0.
        frames: JPEG pictures, RGB, 224 x 224, one a second; picture i is the one shown at i + 0.5 s. Empty where
            only their embeddings are kept.
        frame_embeddings: one embedding a picture, or None before they are computed.
        still_picture: whether all pictures of the video, not only the stored ones, are the same.
    """

    id: str
    label: str
    audio: Int16[np.ndarray, "L"]
    frames: tuple[bytes, ...]
    frame_embeddings: Float32[np.ndarray, "num_frames Q"] | None = None
    still_picture: bool = False

    @property
    def num_frames(self) -> int:
        """How many pictures there are, or were before only their embeddings were kept."""
        return len(self.frames if self.frame_embeddings is None else self.frame_embeddings)


def encode_record(record: Record, audio_encoding: str = "pcm16") -> bytes:
    """Serialize a record as a `tf.train.Example`; equal records give equal bytes.

    Args:
        audio_encoding: "pcm16", which is read fastest, or "flac", which is smaller; both are lossless.

    Raises:
        ValueError: the record does not hold one embedding a picture.
        TypeError: its arrays are not int16 and float32.
    """
    example = Example()
    feature = example.features.feature
    feature["id"].bytes_list.value.append(record.id.encode(*_TEXT))
    feature["label"].bytes_list.value.append(record.label.encode(*_TEXT))
    feature["audio"].bytes_list.value.append(_encode_audio(record.audio, audio_encoding))
    feature["encoding"].bytes_list.value.append(audio_encoding.encode())
    feature["sample_rate_hz"].int64_list.value.append(SAMPLE_RATE_HZ)
    feature["still_picture"].int64_list.value.append(int(record.still_picture))
    feature["frames"].bytes_list.value.extend(record.frames)
    embeddings = record.frame_embeddings
    if embeddings is not None:
        _check_count(len(embeddings), len(record.frames))
        packed = embeddings.astype("<f4", casting="equiv", copy=False).tobytes()
        feature["frame_embeddings"].bytes_list.value.append(packed)
        feature["query_size"].int64_list.value.append(embeddings.shape[1])
    return example.SerializeToString(deterministic=True)


def decode_record(data: bytes, *, with_frames: bool = True) -> Record:
    """Read a serialized record; its arrays are read-only.

    Args:
        data: what `encode_record` gave.
        with_frames: False leaves `frames` empty, for readers that need only audio and embeddings.

    Raises:
        CorruptRecordError: the bytes are no record.
    """
    try:
        feature = Example.FromString(data).features.feature
        missing = sorted(_FEATURES - set(feature))
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if list(feature["sample_rate_hz"].int64_list.value) != [SAMPLE_RATE_HZ]:
            raise ValueError(f"its audio is not sampled at {SAMPLE_RATE_HZ} Hz")
        return Record(
            id=feature["id"].bytes_list.value[0].decode(*_TEXT),
            label=feature["label"].bytes_list.value[0].decode(*_TEXT),
            audio=_decode_audio(feature["audio"].bytes_list.value[0], feature["encoding"].bytes_list.value[0]),
            frames=tuple(feature["frames"].bytes_list.value) if with_frames else (),
            frame_embeddings=_decode_embeddings(feature),
            still_picture=bool(feature["still_picture"].int64_list.value[0]),
        )
    except (DecodeError, IndexError, ValueError) as error:
        raise CorruptRecordError(f"The bytes are no readable record ({error}); prepare the records again.") from error


_FEATURES = {"id", "label", "audio", "encoding", "sample_rate_hz", "still_picture", "frames"}


def _encode_audio(audio: Int16[np.ndarray, "L"], encoding: str) -> bytes:
    if encoding == "pcm16":
        return audio.astype("<i2", casting="equiv", copy=False).tobytes()
    import soundfile

    buffer = io.BytesIO()
    samples = audio.astype(np.int16, casting="equiv", copy=False)
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, subtype="PCM_16", format="FLAC")
    return buffer.getvalue()


def _decode_audio(data: bytes, encoding: bytes) -> Int16[np.ndarray, "L"]:
    if encoding == b"pcm16":
        return np.frombuffer(data, "<i2").astype(np.int16, copy=False)
    if encoding != b"flac":
        raise ValueError("its audio has an unknown encoding")
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if (file.format, file.samplerate, file.channels) != ("FLAC", SAMPLE_RATE_HZ, 1):
                raise ValueError("its audio is no FLAC of one channel at the right rate")
            if file.frames > _MAX_FLAC_SAMPLES:
                raise ValueError(f"its audio has {file.frames} samples")
            return file.read(dtype="int16")
    except soundfile.SoundFileError as error:
        raise ValueError(f"its audio does not decode: {error}") from error


def _decode_embeddings(feature: Any) -> Float32[np.ndarray, "num_frames Q"] | None:
    if "frame_embeddings" not in feature:
        return None
    packed = np.frombuffer(feature["frame_embeddings"].bytes_list.value[0], "<f4").astype(np.float32, copy=False)
    embeddings = packed.reshape(-1, feature["query_size"].int64_list.value[0])
    _check_count(len(embeddings), len(feature["frames"].bytes_list.value))
    return embeddings


def _check_count(num_embeddings: int, num_frames: int) -> None:
    if num_frames not in (0, num_embeddings):
        raise ValueError(f"{num_embeddings} embeddings for {num_frames} pictures")


def decode_frame(jpeg: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Decode one stored picture.

    Raises:
        CorruptRecordError: it is no JPEG, is damaged, or has a side above 4096 pixels.
    """
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
            if max(picture.size) > _MAX_FRAME_SIDE:
                raise CorruptRecordError(f"A stored picture has sides {picture.size}, above {_MAX_FRAME_SIDE} pixels.")
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CorruptRecordError(f"A stored picture is no readable JPEG: {error}.") from error


@dataclass(frozen=True)
class Shard:
    """What the manifest knows of one shard file."""

    name: str
    num_records: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of a shard's index, and where it stands."""

    shard: str  # name of the file
    number: int  # of the record in its shard
    offset: int  # bytes before the record's framing
    length: int  # bytes of the serialized record, without its framing
    id: str
    label: str
    num_frames: int
    num_samples: int


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies."""
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
    return json.dumps(line | {"num_frames": record.num_frames, "num_samples": len(record.audio)}).encode() + b"\n"


def _read_index(folder: Path, shard: Shard) -> list[IndexEntry]:
    path = index_path(folder / shard.name)
    try:
        size = (folder / shard.name).stat().st_size
        lines = path.read_text("utf-8").splitlines()
        entries = [IndexEntry(shard.name, number, **json.loads(line)) for number, line in enumerate(lines)]
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing; restore it or prepare the records again.") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is no index of records; restore it or prepare the records again.") from error
    if (len(entries), size) != (shard.num_records, shard.num_bytes):
        told = f"{len(entries)} records in {size} bytes, but the manifest says {shard.num_records} in {shard.num_bytes}"
        raise InputError(f"{folder / shard.name} has {told}; restore the file or prepare the records again.")
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
        self._folder = folder
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
        entry = self.entries[index]
        with (self._folder / entry.shard).open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), entry.length + FRAMING_BYTES, entry.offset)
        try:
            record = unframed(data, entry.length)
        except ValueError as error:
            where = f"{self._folder / entry.shard}: record {entry.number} is damaged ({error})"
            message = f"{where}; restore the file or prepare the records again."
            raise CorruptRecordError(message, str(error)) from None
        return decode_record(record, with_frames=self._with_frames)


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
    """Write `manifest.json` of a folder of records; to be done last, since it says that the folder is complete.

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
    with atomic_write(folder / MANIFEST_NAME) as file:
        file.write(json.dumps(fixed | asdict(manifest) | {"splits": splits}, indent=1).encode() + b"\n")


def tfds_files(manifest: Manifest) -> dict[str, bytes]:
    """What TensorFlow Datasets needs, by file name."""
    lengths = {name: [shard.num_records for shard in shards] for name, shards in manifest.splits.items()}
    num_bytes = {name: sum(shard.num_bytes for shard in shards) for name, shards in manifest.splits.items()}
    query_size = manifest.encoder.query_size if manifest.encoder else None
    return {
        tfds_metadata.FEATURES_NAME: tfds_metadata.features(manifest.audio_encoding, FRAME_SIZE, query_size),
        tfds_metadata.INFO_NAME: tfds_metadata.dataset_info(SCHEMA_VERSION, lengths, num_bytes),
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
    try:
        fields = json.loads(path.read_text("utf-8"))
        schema = fields["schema"]
        if schema == SCHEMA_VERSION:
            return _manifest(fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is no manifest of records; restore it or prepare the records again.") from error
    raise InputError(f"{path} has schema {schema}, but this version reads {SCHEMA_VERSION}; prepare the records again.")


def _manifest(fields: dict[str, Any]) -> Manifest:
    splits = {name: tuple(Shard(**shard) for shard in split["shards"]) for name, split in fields["splits"].items()}
    if any(Path(shard.name).name != shard.name for shards in splits.values() for shard in shards):
        raise ValueError("a shard lies outside the folder")
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
        """Open one split; an InputError lists those that there are, or names a file that is not as it was."""
        if name not in self.manifest.splits:
            raise InputError(f"{self.folder} has no split {name!r}; it has {', '.join(self.splits)}.")
        return RecordSplit(self.folder, name, self.manifest.splits[name], with_frames=with_frames)
