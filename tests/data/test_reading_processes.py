"""Processes that read: the same batches as without them, and nothing left behind however things end."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from clipsep_jax.data import reading_processes
from clipsep_jax.data.batches import Batches, num_workers_of
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.queries.kinds import KINDS
from tests.children import children_of
from tests.data.misbehaving import Query
from tests.data.test_batches import assert_equal, damage
from tests.small import make_records, small_config

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers need POSIX")


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> RecordSet:
    return RecordSet(make_records(tmp_path_factory.mktemp("records")))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before, descriptors = children_of(os.getpid()), len(os.listdir("/dev/fd"))
    yield
    assert children_of(os.getpid()) == before
    assert len(os.listdir("/dev/fd")) == descriptors


def batches_of(
    records: RecordSet, *, workers: int, kind: str = "image", source: str = "embeddings", batch_size: int = 3, **how
) -> Batches:
    config = small_config(records.folder).replace(data={"read_workers": workers}, query={"source": source})
    return KINDS[kind].batches(config, records, "train", training=True, batch_size=batch_size, **how)


@pytest.mark.parametrize(
    ("workers", "kind", "source", "how"),
    [
        (1, "image", "embeddings", {}),
        (2, "text", "embeddings", {}),
        (3, "hybrid", "embeddings", {"process_index": 1, "num_processes": 2}),
        (5, "label", "embeddings", {}),  # more than there are examples
        (2, "none", "embeddings", {"process_index": 0, "num_processes": 2}),
        (2, "image", "frames", {}),
    ],
)
def test_batches_are_the_same_for_any_number_of_workers(records, workers, kind, source, how):
    batches = batches_of(records, workers=workers, kind=kind, source=source, **how)
    start = 7
    with closing(batches.iterate(start)) as ahead:
        for step, batch in enumerate(islice(ahead, 12), start):
            expected = batches[step]
            for name, value in vars(expected).items():
                found = getattr(batch, name)
                np.testing.assert_array_equal(found, value)
                assert (found is None) or (found.dtype, found.shape) == (value.dtype, value.shape)
    assert batches.num_bytes_read > 0


def test_batches_that_are_kept_stay_as_they_are(records):
    batches = batches_of(records, workers=2)
    with closing(batches.iterate()) as ahead:
        kept = list(islice(ahead, 3 * reading_processes.NUM_SLOTS))
    for step, batch in enumerate(kept):
        assert_equal(batch, batches[step])


def test_slots_are_read_into_again(records):
    """Memory does not grow with the number of steps."""
    batches = batches_of(records, workers=1)
    with closing(batches.iterate()) as ahead:
        places = {next(ahead).sources.ctypes.data for _ in range(5 * reading_processes.NUM_SLOTS)}
    assert len(places) <= reading_processes.NUM_SLOTS


def test_damaged_records_are_replaced_and_counted_for_all_workers_together(tmp_path):
    records = RecordSet(make_records(tmp_path))
    damage(records, "train", {3})
    expected = batches_of(records, workers=0)
    with pytest.warns(InputWarning, match="record 3 is damaged") as told_by_one:
        whole = [expected[step] for step in range(2)]
    assert len(told_by_one) == 1
    batches = batches_of(records, workers=2)
    with closing(batches.iterate()) as ahead, pytest.warns(InputWarning, match="record 3 is damaged") as told:
        found = list(islice(ahead, 2))
    for batch, expected in zip(found, whole, strict=True):
        assert_equal(batch, expected)
    assert [str(one.message) for one in told] == [str(one.message) for one in told_by_one]
    damage(records, "train", {5})
    batches = batches_of(records, workers=2)
    with (
        closing(batches.iterate()) as ahead,
        pytest.warns(InputWarning, match="record [35] is damaged"),
        pytest.raises(InputError, match="More than 1 of 1000 records were damaged"),
    ):
        list(islice(ahead, 5))


def misbehaving(records: RecordSet, what: str, once: Path | None = None) -> Batches:
    batches = batches_of(records, workers=2)
    query = Query(what, once=str(once or ""))
    batches.reader = replace(batches.reader, reader=replace(batches.reader.reader, query=query))
    return batches


def test_workers_import_no_jax(records):
    with closing(misbehaving(records, "nothing").iterate()) as ahead:
        assert not next(ahead).query.any()


def test_a_worker_that_dies_is_started_again(records, tmp_path):
    batches = misbehaving(records, "die", tmp_path / "died")
    expected = batches_of(records, workers=0)
    told = r"A process that reads records died \(SIGKILL, perhaps for lack of memory\); it is started again\."
    with closing(batches.iterate()) as ahead, pytest.warns(InputWarning, match=told):
        found = list(islice(ahead, 12))
    for step, batch in enumerate(found):
        np.testing.assert_array_equal(batch.sources, expected[step].sources)
    assert (tmp_path / "died").exists()


def test_workers_that_keep_dying_end_the_run(records):
    with (
        closing(misbehaving(records, "die").iterate()) as ahead,
        pytest.warns(InputWarning, match="it is started again"),
        pytest.raises(
            ChildProcessError, match=r"keep dying \(SIGKILL, .*\); .* a smaller --config\.data\.read_workers"
        ),
    ):
        list(islice(ahead, 12))


def test_what_ended_a_worker_is_told(records):
    with (
        closing(misbehaving(records, "exit").iterate()) as ahead,
        pytest.warns(InputWarning, match=r"died \(exit code 3\); it is started again"),
        pytest.raises(ChildProcessError, match=r"keep dying \(exit code 3\)"),
    ):
        list(islice(ahead, 12))


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("give_up", InputError, "This clip will not do"),
        ("lose_the_disk", OSError, "Input/output error"),
        ("lose_a_socket", OSError, "Input/output error"),
        ("fail", RuntimeError, "ZeroDivisionError: a bug"),
    ],
)
def test_errors_of_workers_are_raised_here(records, what, kind, words):
    with closing(misbehaving(records, what).iterate()) as ahead, pytest.raises(kind, match=words):
        list(islice(ahead, 12))


def test_a_record_that_does_not_come_is_named(records, monkeypatch):
    with closing(misbehaving(records, "hang").iterate()) as ahead:
        next(ahead)
        monkeypatch.setattr(reading_processes, "SLOW_SECONDS", 0.3)
        with pytest.warns(InputWarning, match=f"clip4.mp4 of {records.folder} took over 0 s to read so far"):
            list(islice(ahead, 10))


def test_a_process_that_does_not_start_is_told(records, monkeypatch):
    monkeypatch.setattr(reading_processes, "SLOW_SECONDS", 0.01)
    with (
        closing(batches_of(records, workers=1).iterate()) as ahead,
        pytest.warns(InputWarning, match="A process that reads records took over 0 s to start so far"),
    ):
        next(ahead)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is not reserved")
def test_too_little_memory_is_told_before_anything_is_read(records, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with closing(batches_of(records, workers=2).iterate()) as ahead, pytest.raises(MemoryError):
        next(ahead)


def test_an_iteration_that_was_not_begun_starts_nothing(records):
    batches_of(records, workers=2).iterate().close()


def test_two_iterations_at_once_are_apart(records):
    batches = batches_of(records, workers=1)
    with closing(batches.iterate()) as one, closing(batches.iterate(3)) as other:
        for step in range(3):
            assert_equal(next(one), batches[step])
            assert_equal(next(other), batches[step + 3])


def test_workers_by_default_leave_two_cores(monkeypatch):
    for cores, expected in ((1, 0), (2, 0), (4, 2), (16, 8), (64, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n), raising=False)
        assert num_workers_of(-1) == expected
    assert num_workers_of(0) == 0
    assert num_workers_of(20) == 20
