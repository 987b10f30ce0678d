"""From clips to batches. The batch of a step is a pure function of the config and the step."""

import threading
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipsep_jax.config import Config
from clipsep_jax.data.clips import ClipReader, build_reader
from clipsep_jax.data.record import CorruptRecordError
from clipsep_jax.data.record_set import RecordSet, RecordSplit
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.structures import Batch

MAX_REPLACED, REPLACED_WINDOW = 1, 1_000  # damaged records that may be replaced, of so many reads in a row


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
