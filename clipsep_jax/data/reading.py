"""Which clips make a batch, and reading them, whole or in parts. It imports no JAX: see `reading_processes.py`."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from clipsep_jax.data.clips import ClipReader
from clipsep_jax.data.record import CorruptRecordError
from clipsep_jax.data.record_set import RecordSplit
from clipsep_jax.data.stored import StoredRecord
from clipsep_jax.data.tfrecord import FRAMING_BYTES
from clipsep_jax.errors import InputError

TRIES = 50  # of another clip where two have the same label
MAX_REPLACED, REPLACED_WINDOW = 1, 1_000  # so many damaged records at most, in so many reads

Arrays = dict[str, np.ndarray]  # by the names of `Batch`


@dataclass(frozen=True, slots=True)
class Replacement:
    """A damaged record, and the id of the one that was read instead."""

    message: str
    reason: str
    instead: str


@dataclass(frozen=True, slots=True)
class ReadClip:
    """A clip, what it replaces, and how many bytes were read for it."""

    arrays: dict[str, Any]
    replaced: tuple[Replacement, ...]
    num_bytes: int


class TolerantReader:
    """Reads clips by their number in a split; for a damaged record it reads the next whole one.

    Which one depends only on the split, so equal runs stay equal. Reading is safe from many threads.
    """

    def __init__(self, split: RecordSplit, read: ClipReader):
        self._split = split
        self._read = read

    def __call__(self, number: int, rng: np.random.Generator | None = None) -> ReadClip:
        """Read a clip, or the one after it, as `ClipReader` does.

        Raises:
            InputError: too many records on end are damaged.
        """
        size = len(self._split)
        replaced: tuple[Replacement, ...] = ()
        for other in range(number, number + size):
            try:
                record = self._split.clip(other % size)
                arrays = self._read(record, rng)
            except CorruptRecordError as error:
                instead = self._split.entries[(other + 1) % size].id
                replaced += (Replacement(str(error), error.reason, instead),)
                if len(replaced) > MAX_REPLACED:
                    raise too_many(replaced) from error
            else:
                whole = self._split.entries[other % size].length + FRAMING_BYTES
                return ReadClip(arrays, replaced, record.num_bytes_read if isinstance(record, StoredRecord) else whole)
        raise too_many(replaced)


def too_many(replaced: Iterable[Replacement]) -> InputError:
    """The error that ends a run on damaged records, of which the last one is named."""
    *_, last = replaced = list(replaced)
    reasons = Counter(one.reason for one in replaced)
    counts = ", ".join(f"{count} times: {reason}" for reason, count in reasons.items())
    return InputError(f"{last.message} More than {MAX_REPLACED} of {REPLACED_WINDOW} records were damaged ({counts}).")


@dataclass
class Report:
    """What reading a batch, or a part of one, met.

    Attributes:
        replaced: damaged records, with the place of the clip in the process's sequence.
        num_bytes: that were read.
    """

    replaced: list[tuple[int, Replacement]] = field(default_factory=list)
    num_bytes: int = 0


@dataclass(frozen=True)
class BatchReader:
    """Reads the batches of one process of a run.

    Clips are reshuffled every pass and paired in that order; if their number is odd, the pair across two passes may
    hold one clip twice. In training the cuts are random. The process's share is cut from the finished sequence, so the
    global batch does not depend on the number of processes. What is read depends on the step alone: any part of any
    batch can be read anywhere, in any order.

    Attributes:
        training: cut and amplify at random.
        batch_size: of this process.
        distinct_labels: no two clips of a mixture have the same label.
    """

    split: RecordSplit
    reader: ClipReader
    seed: int
    training: bool
    num_sources: int
    batch_size: int
    process_index: int = 0
    num_processes: int = 1
    distinct_labels: bool = False

    @cached_property
    def _shuffled(self) -> Any:
        """The clips' numbers in the split, shuffled anew in each pass, endlessly: a grain.MapDataset."""
        import grain

        return grain.MapDataset.source(range(len(self.split))).seed(self.seed).shuffle().repeat()

    @cached_property
    def _numbers(self) -> Any:
        """The numbers of the clips that are read."""
        return self._shuffled.map_with_index(self._with_own_label) if self.distinct_labels else self._shuffled

    def _with_own_label(self, place: int, number: int) -> int:
        """The clip at a place; or if one before it in its example has its label, the one at that place in a later pass.

        After TRIES passes the label stays.
        """
        first, labels = place - place % self.num_sources, set[str]()
        for one in range(first, place + 1):
            others = (n for n in self._candidates(one) if self.split.entries[n].label not in labels)
            number = next(others, self._shuffled[one])
            labels |= {self.split.entries[number].label} - {""}
        return number

    def _candidates(self, place: int) -> Iterator[int]:
        return (self._shuffled[place + tried * len(self.split)] for tried in range(TRIES))

    @cached_property
    def _clips(self) -> Any:
        read = TolerantReader(self.split, self.reader)
        return self._numbers.random_map(read) if self.training else self._numbers.map(read)

    def ids(self, step: int) -> list[str]:
        """Which clips the global batch of a step holds."""
        size = self.batch_size * self.num_sources * self.num_processes
        return [self.split.entries[self._numbers[place]].id for place in range(step * size, (step + 1) * size)]

    def id_at(self, place: int) -> str:
        """Which clip is at a place of the whole sequence."""
        return self.split.entries[self._numbers[place]].id

    @cached_property
    def layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of each array of a batch, by the first clip."""
        arrays = {name: np.asarray(value) for name, value in self._clips[0].arrays.items()}
        shape = (self.batch_size, self.num_sources)
        return {name: ((*shape, *value.shape), value.dtype) for name, value in arrays.items()}

    def fill(self, step: int, rows: range, arrays: Arrays, now_at: np.ndarray | None = None) -> Report:
        """Read some rows of the batch of a step into the arrays of the whole batch.

        Args:
            now_at: [1], set to the place in the whole sequence of the clip that is being read.

        Raises:
            InputError: too many records on end are damaged, or a record cannot give what is asked of it.
        """
        report = Report()
        first_row = (step * self.num_processes + self.process_index) * self.batch_size
        for row in rows:
            for source in range(self.num_sources):
                place = (first_row + row) * self.num_sources + source
                if now_at is not None:
                    now_at[0] = place
                clip = self._clips[place]
                for name, value in clip.arrays.items():
                    arrays[name][row, source] = value
                own_place = (step * self.batch_size + row) * self.num_sources + source
                report.replaced += [(own_place, one) for one in clip.replaced]
                report.num_bytes += clip.num_bytes
        return report

    def read(self, step: int) -> tuple[Arrays, Report]:
        """Read the whole batch of a step."""
        arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in self.layout.items()}
        return arrays, self.fill(step, range(self.batch_size), arrays)
