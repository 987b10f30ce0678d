"""From clips to batches. The batch of a step is a pure function of the config and the step."""

import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipsep_jax.config import Config
from clipsep_jax.data.clips import ClipReader
from clipsep_jax.data.record import CorruptRecordError
from clipsep_jax.data.record_set import RecordSplit
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.structures import Batch

MAX_REPLACED, REPLACED_WINDOW = 1, 1_000  # so many damaged records at most, in so many reads


class TolerantReader:
    """Reads clips by their number in a split; for a damaged record it reads the next whole one, with a warning that
    names both.

    Which one depends only on the split, so equal runs stay equal. Reading is safe from many threads.

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
                return self._read(self._split.clip(other % size), rng)
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
        warnings.warn(f"{error} {entry.id} is used instead.", InputWarning, stacklevel=3)


@dataclass(frozen=True)
class Batches:
    """Batches by their number: `batches[step]`, or iterated from a step with read-ahead."""

    dataset: Any  # grain.MapDataset
    numbers: Any  # the same for the clips' numbers in the split, [B, N] per step and process
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
    split: RecordSplit,
    reader: ClipReader,
    of_step: Callable[[np.ndarray, int], np.ndarray],
    *,
    training: bool,
    batch_size: int,
    process_index: int = 0,
    num_processes: int = 1,
) -> Batches:
    """Endless batches of mixtures from one split.

    Clips are reshuffled every pass and paired in that order; if their number is odd, the pair across two passes may
    hold one clip twice. In training the cuts are random. The process's share is cut from the finished sequence, so the
    global batch does not depend on the number of processes.

    Args:
        split: the clips; with pictures if the reader needs them.
        reader: cuts a clip and gives its query.
        of_step: makes the queries of a step from those that the reader gave.
        training: cut and amplify at random.
        batch_size: of this process.

    Raises:
        InputError: the split has fewer clips than a mixture has sources.
    """
    import grain

    _check_size(split, config.data.num_sources)

    def batched(clips: Any) -> Any:
        return clips.batch(config.data.num_sources).batch(batch_size)

    ordered = grain.MapDataset.source(range(len(split))).seed(config.train.seed).shuffle().repeat()
    read = TolerantReader(split, reader)
    dataset = batched(ordered.random_map(read) if training else ordered.map(read))[process_index::num_processes]
    if reader.query is not None:
        dataset = dataset.map_with_index(lambda step, batch: batch | {"query": of_step(batch["query"], step)})
    return Batches(dataset, batched(ordered), num_processes, split, read, config.data.read_threads)


def _check_size(split: RecordSplit, num_sources: int) -> None:
    if len(split) < num_sources:
        raise InputError(
            f"The split {split.name!r} of {split.folder} has {len(split)} clips, too few for mixtures of {num_sources}."
        )
