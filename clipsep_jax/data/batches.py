"""From clips to batches. The batch of a step is a pure function of the config and the step."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import count

import numpy as np

from clipsep_jax.config import Config
from clipsep_jax.data import reading
from clipsep_jax.data.clips import ClipReader
from clipsep_jax.data.reading import Arrays, BatchReader, Replacement, Report, too_many
from clipsep_jax.data.reading_processes import read_in_processes
from clipsep_jax.data.record_set import RecordSplit
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.structures import Batch

MOST_WORKERS = 8  # unless more are asked for


class Damages:
    """Counts damaged records, each once within REPLACED_WINDOW reads, however often it is read.

    Attributes:
        replaced: each such record, by its message.
    """

    def __init__(self) -> None:
        self.replaced: dict[str, Replacement] = {}
        self._places: dict[str, int] = {}  # in the sequence of clips, where each was met last

    def add(self, place: int, one: Replacement) -> None:
        """Warn of a damaged record once, in a sentence that names it and the one that is used instead.

        Args:
            place: of the clip in the sequence of clips.

        Raises:
            InputError: more than 0.1% of any 1,000 records were damaged.
        """
        is_new = one.message not in self.replaced
        self.replaced[one.message], self._places[one.message] = one, place
        recent = [other for other in self._places.values() if abs(other - place) < reading.REPLACED_WINDOW]
        if len(recent) > reading.MAX_REPLACED:
            raise too_many(self.replaced.values())
        if is_new:
            warnings.warn(f"{one.message} {one.instead} is used instead.", InputWarning, stacklevel=3)


class Batches:
    """Batches by their number: `batches[step]`, or iterated from a step with read-ahead.

    Attributes:
        damages: damaged records that were met.
        num_bytes_read: so far.
        reader: what they hold.
    """

    def __init__(
        self,
        reader: BatchReader,
        of_step: Callable[[np.ndarray, int], np.ndarray],
        *,
        num_threads: int = 1,
        num_workers: int = 0,
    ):
        """Nothing is read yet.

        Args:
            of_step: makes the queries of a step from those that the reader gave.
            num_threads: that read ahead, without workers.
            num_workers: processes that read ahead.
        """
        self.damages, self.num_bytes_read = Damages(), 0
        self.reader, self._of_step = reader, of_step
        self._num_threads, self._num_workers = num_threads, num_workers
        self.ids = reader.ids

    def __getitem__(self, step: int) -> Batch:
        return self._batch(step, *self.reader.read(step))

    def iterate(self, start: int = 0) -> Generator[Batch, None, None]:
        """The batches from a step on; close it to end threads and processes.

        Raises:
            InputError: a record cannot be used.
            OSError: the machine failed.
        """
        read = self._in_processes(start) if self._num_workers else self._in_threads(start)
        with closing(read):
            for step, (arrays, report) in enumerate(read, start):
                yield self._batch(step, arrays, report)

    def _batch(self, step: int, arrays: Arrays, report: Report) -> Batch:
        self.num_bytes_read += report.num_bytes
        for place, one in report.replaced:
            self.damages.add(place, one)
        if "query" in arrays:
            arrays = arrays | {"query": self._of_step(arrays["query"], step)}
        return Batch(**arrays)

    def _in_processes(self, start: int) -> Generator[tuple[Arrays, Report], None, None]:
        return read_in_processes(self.reader, self._num_workers, start)

    def _in_threads(self, start: int) -> Generator[tuple[Arrays, Report], None, None]:
        waiting: deque[Future[tuple[Arrays, Report]]] = deque()
        pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="read")
        try:
            for step in count(start):
                waiting.append(pool.submit(self.reader.read, step))
                if len(waiting) > 2 * self._num_threads:
                    yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def num_workers_of(asked: int) -> int:
    """How many processes read: as many as asked for, or for -1 what leaves two cores to training."""
    if asked >= 0:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, max(0, cores - 2))


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
    """Endless batches of mixtures from one split; see `BatchReader`.

    Args:
        split: the clips; with pictures if the reader needs them.
        reader: cuts a clip and gives its query.
        of_step: makes the queries of a step from those that the reader gave.
        training: cut and amplify at random.
        batch_size: of this process.

    Raises:
        InputError: the split has fewer clips than a mixture has sources.
    """
    num_sources = config.data.num_sources
    if len(split) < num_sources:
        raise InputError(
            f"The split {split.name!r} of {split.folder} has {len(split)} clips, too few for mixtures of {num_sources}."
        )
    seed = config.train.seed
    distinct = training and config.data.distinct_labels
    batches = BatchReader(
        split, reader, seed, training, num_sources, batch_size, process_index, num_processes, distinct
    )
    num_workers = num_workers_of(config.data.read_workers)
    return Batches(batches, of_step, num_threads=config.data.read_threads, num_workers=num_workers)
