"""From records to batches. The batch of a step is a pure function of the config and the step.

A clip is cut as the official code does: a centre picture, audio around its time, a few pictures around it.
"""

import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16, UInt8

from clipsep_jax.config import Config, DataConfig, SpectrogramConfig
from clipsep_jax.queries import EmbeddingTable
from clipsep_jax.record_sets import LABEL_EMBEDDINGS_NAME, RecordSet, RecordSplit
from clipsep_jax.records import FRAMES_PER_SECOND, CorruptRecordError, Record, decode_frame
from clipsep_jax.structures import Batch, InputError, InputWarning

MAX_REPLACED, REPLACED_WINDOW = 1, 1_000  # damaged records that may be replaced, of so many reads in a row


def centre_range(num_frames: int, margin: int) -> tuple[int, int]:
    """First and last picture (counted from 1) that may be a clip's centre.

    The margin on both sides shrinks for clips too short for it.
    """
    margin = min(margin, (num_frames - 1) // 2)
    return margin + 1, num_frames - margin


def crop_audio(audio: Int16[np.ndarray, "L"], centre_samples: int, num_samples: int) -> Int16[np.ndarray, "n"]:
    """`num_samples` around a centre: short audio is tiled, outside is silence, the last sample is always 0."""
    if len(audio) < num_samples:
        audio = np.tile(audio, num_samples // len(audio) + 1)
    half = num_samples // 2
    start, end = max(0, centre_samples - half), min(len(audio), centre_samples + half)
    crop = np.zeros(num_samples, np.int16)
    crop[half - (centre_samples - start) : half + (end - centre_samples)] = audio[start:end]
    return crop


def centre_samples(centre: int, sample_rate_hz: int) -> int:
    """Time of the middle of a picture (counted from 1), in samples."""
    return int((centre - 0.5) / FRAMES_PER_SECOND * sample_rate_hz)


def pictures_around(centre: int, num_frames: int, count: int) -> Int16[np.ndarray, "R"]:
    """Indices (from 0) of the `count` pictures around a centre (from 1), the outermost repeated at the ends."""
    indices = centre - 1 + np.arange(count) - count // 2
    return np.clip(indices, 0, num_frames - 1).astype(np.int16)


QueryOf = Callable[[Record, np.ndarray], np.ndarray]  # of a record and the pictures around a centre


@dataclass(frozen=True)
class ClipReader:
    """Record -> one source of a mixture, as a dict of arrays with the names of `Batch`.

    With `frames` it gives pictures in place of a query; with neither, sound alone.
    """

    data: DataConfig
    spectrogram: SpectrogramConfig
    query: QueryOf | None
    frames: bool = False

    def __call__(self, record: Record, rng: np.random.Generator | None) -> dict[str, Any]:
        """Cuts a clip: at a random centre and gain from `rng`, or without it in the middle and as loud as it is."""
        num_frames = self._num_frames(record)
        low, high = centre_range(num_frames, self.data.frame_margin)
        centre = max(1, num_frames // 2) if rng is None else int(rng.integers(low, high, endpoint=True))
        gain = 1.0 if rng is None else rng.uniform(self.data.gain_min, self.data.gain_max)
        middle = centre_samples(centre, self.spectrogram.sample_rate_hz)
        sound = crop_audio(record.audio, middle, self.spectrogram.num_samples)
        clip: dict[str, Any] = {"sources": sound, "gain": np.float32(gain)}
        nearby = pictures_around(centre, num_frames, self.data.frames_per_clip)
        if self.frames:
            if not record.frames:
                raise InputError(f"{record.id} has no stored pictures; train with --config.query.source=embeddings.")
            return clip | {"frames": np.stack([self._decode(record, int(number)) for number in nearby])}
        return clip if self.query is None else clip | {"query": self.query(record, nearby)}

    def _decode(self, record: Record, number: int) -> UInt8[np.ndarray, "H W 3"]:
        try:
            return decode_frame(record.frames[number])
        except CorruptRecordError as error:
            message = f"{record.id}, picture {number + 1}: {error} Prepare the records again."
            raise CorruptRecordError(message, error.reason) from error

    def _num_frames(self, record: Record) -> int:
        seconds = len(record.audio) * FRAMES_PER_SECOND // self.spectrogram.sample_rate_hz
        return record.num_frames or max(1, seconds)


def build_reader(config: Config, records: RecordSet, kind: str, source: str = "embeddings") -> ClipReader:
    """The reader that gives queries of a kind, from stored embeddings or as "frames".

    Raises:
        InputError: the records cannot give such queries.
    """
    if source == "frames":
        return ClipReader(config.data, config.spectrogram, None, frames=True)
    return ClipReader(config.data, config.spectrogram, build_query(config, records, kind))


def build_query(config: Config, records: RecordSet, kind: str) -> QueryOf | None:
    """The one place where a kind of query becomes a function of a record; "hybrid" gives image and text, [2, Q]."""
    if kind == "none":
        return None
    if kind == "label":
        numbers = {label: np.array(number, np.int32) for number, label in enumerate(records.labels)}
        return lambda record, _: numbers[record.label]
    if kind == "sentence":
        table = EmbeddingTable.load(Path(config.query.table))
        _check_query_size(config, config.query.table, table.vectors.shape[1])
        return lambda record, _: table.lookup(record.label)
    if records.query_size is None:
        raise InputError(
            f"{records.folder} holds no embeddings; prepare it with --clip, or train with --config.query.source=frames."
        )
    _check_query_size(config, str(records.folder), records.query_size)
    if kind == "image":
        return _image_query
    texts = EmbeddingTable.load(records.folder / LABEL_EMBEDDINGS_NAME)
    if kind == "text":
        return lambda record, _: texts.lookup(record.label)
    return lambda record, nearby: np.stack([_image_query(record, nearby), texts.lookup(record.label)])


def _image_query(record: Record, nearby: np.ndarray) -> Float32[np.ndarray, "Q"]:
    assert record.frame_embeddings is not None
    return record.frame_embeddings[nearby].mean(axis=0)


def _check_query_size(config: Config, where: str, size: int) -> None:
    if size != config.model.query_size:
        raise InputError(
            f"{where} holds embeddings of size {size}, the config expects {config.model.query_size}; "
            f"set --config.model.query_size={size}."
        )


class TolerantReader:
    """Reads clips by their number in a split; for a damaged record it reads the next whole one, with a warning that
    names both.

    Which one depends on the split alone, so equal runs stay equal. Reading is safe from many threads.

    Attributes:
        replaced: how many were replaced, by reason.
    """

    def __init__(self, split: RecordSplit, read: ClipReader):
        self.replaced: Counter[str] = Counter()
        self._split = split
        self._read = read
        self._num_reads = 0
        self._replaced_at: deque[int] = deque(maxlen=MAX_REPLACED + 1)
        self._lock = threading.Lock()

    def __call__(self, number: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Read a clip, or the one after it, as `ClipReader` does.

        Raises:
            InputError: more than 0.1% of any 1,000 records were damaged.
        """
        with self._lock:
            self._num_reads += 1
        size = len(self._split)
        for other in range(number, number + size):
            try:
                return self._read(self._split[other % size], rng)
            except CorruptRecordError as error:
                self._count(error, (other + 1) % size)
        raise AssertionError("a split without a whole record has ended the run before")

    def _count(self, error: CorruptRecordError, instead: int) -> None:
        with self._lock:
            self.replaced[error.reason] += 1
            self._replaced_at.append(self._num_reads)
            recent = [at for at in self._replaced_at if at > self._num_reads - REPLACED_WINDOW]
        if len(recent) > MAX_REPLACED:
            counts = ", ".join(f"{count} times: {reason}" for reason, count in self.replaced.items())
            raise InputError(f"{error} More than {MAX_REPLACED} of {REPLACED_WINDOW} records were damaged ({counts}).")
        entry = self._split.entries[instead]
        warnings.warn(f"{error} Meanwhile {entry.id} takes its place.", InputWarning, stacklevel=3)


@dataclass(frozen=True)
class Batches:
    """Batches by their number: `batches[step]`, or iterated from a step on with reading ahead."""

    dataset: Any  # grain.MapDataset
    numbers: Any  # the same of the clips' numbers in the split, [B, N] a step and process
    num_processes: int
    split: RecordSplit
    reader: TolerantReader
    read_threads: int

    def __getitem__(self, step: int) -> Batch:
        return Batch(**self.dataset[step])

    def ids(self, step: int) -> list[str]:
        """Which clips the global batch of a step holds."""
        first = step * self.num_processes
        parts = [np.ravel(self.numbers[first + process]) for process in range(self.num_processes)]
        return [self.split.entries[number].id for number in np.concatenate(parts)]

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        import grain

        options = grain.ReadOptions(num_threads=self.read_threads, prefetch_buffer_size=2 * max(1, self.read_threads))
        for arrays in self.dataset[start:].to_iter_dataset(options):
            yield Batch(**arrays)


def build_batches(
    config: Config,
    records: RecordSet,
    split: str,
    kind: str,
    *,
    training: bool,
    batch_size: int,
    process_index: int = 0,
    num_processes: int = 1,
) -> Batches:
    """Endless batches of mixtures from one split, with queries of a kind ("hybrid": image and text by turns).

    Clips are shuffled anew every pass and paired in that order; where their number is odd, a pair may hold one clip
    twice, with the last of a pass and the first of the next. In training the
    cuts are random. The process's share is cut from the finished sequence, so the global batch does not depend on
    the number of processes.

    Raises:
        InputError: the split is missing, too small, or cannot give such queries.
    """
    import grain

    reader = build_reader(config, records, kind, config.query.source if kind == "image" else "embeddings")
    source = records.split(split, with_frames=reader.frames)
    num_sources = config.data.num_sources
    if len(source) < num_sources:
        raise InputError(
            f"The split {split!r} of {records.folder} has {len(source)} clips, too few for mixtures of {num_sources}."
        )
    if kind in ("text", "hybrid", "label", "sentence"):
        _check_labels(source)
    if kind in ("image", "hybrid"):
        _check_pictures(source)

    def batched(clips: Any) -> Any:
        return clips.batch(num_sources).batch(batch_size)

    ordered = grain.MapDataset.source(range(len(source))).seed(config.train.seed).shuffle().repeat()
    read = TolerantReader(source, reader)
    dataset = batched(ordered.random_map(read) if training else ordered.map(read))[process_index::num_processes]
    if kind == "hybrid":
        dataset = dataset.map_with_index(lambda step, batch: batch | {"query": batch["query"][:, :, step % 2]})
    return Batches(dataset, batched(ordered), num_processes, source, read, config.data.read_threads)


def _check_labels(split: RecordSplit) -> None:
    unlabelled = [entry.id for entry in split.entries if not entry.label]
    if unlabelled:
        raise InputError(
            f"{len(unlabelled)} clips of the split {split.name!r} have no label ({unlabelled[0]} is one); "
            "prepare the records with --labels, or train with another --config.query.kind."
        )


def _check_pictures(split: RecordSplit) -> None:
    bare = [entry.id for entry in split.entries if not entry.num_frames]
    if bare:
        raise InputError(
            f"{len(bare)} clips of the split {split.name!r} have no pictures ({bare[0]} is one); "
            "train on recordings alone with --config.query.kind=text, label, sentence or none."
        )
