"""Safe to kill at any time: the rerun gives the bytes of a run that nobody stopped."""

import random

import pytest

from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from clipsep_jax.errors import InputError
from tests.data_prep.fakes import files_of, make_inputs, read_fake
from tests.data_prep.killing import finishes_before, kill_at_random, run_to_the_end


def prepare(out) -> None:
    run = PoolRunner(num_workers=0)
    write_records(make_inputs(6), read_fake, out, run=run, block_size=2, max_rejected=0.5)


@pytest.mark.soak
def test_a_run_killed_twice_between_any_operations_is_continued_to_the_same_bytes(tmp_path, monkeypatch):
    prepare(tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    number, finished = 0, False
    while not finished:
        folder = tmp_path / f"killed {number}"
        finished = finishes_before(number, monkeypatch, lambda: prepare(folder))  # noqa: B023
        assert_complete_or_refused(folder)
        finishes_before(7 * number % 31, monkeypatch, lambda: prepare(folder))  # noqa: B023
        assert_complete_or_refused(folder)
        prepare(folder)
        assert files_of(folder) == expected, number
        number += 1
    assert number > 40


def assert_complete_or_refused(folder) -> None:
    try:
        records = RecordSet(folder)
    except InputError as error:
        assert "holds no complete records" in str(error)  # noqa: PT017
    else:
        assert sum(len(list(records.split(name))) for name in records.splits) == 5


def kill_and_rerun(tmp_path, num_kills: int) -> int:
    """How many of the kills came before the end of the run."""
    seconds = run_to_the_end(tmp_path / "whole")
    expected, rng, num_in_time = files_of(tmp_path / "whole"), random.Random(0), 0
    for number in range(num_kills):
        num_in_time += kill_at_random(tmp_path / f"killed {number}", rng, seconds)
        run_to_the_end(tmp_path / f"killed {number}")
        assert files_of(tmp_path / f"killed {number}") == expected, number
    return num_in_time


@pytest.mark.slow
def test_after_sigkill_a_rerun_gives_the_same_bytes_and_no_child_is_left(tmp_path):
    kill_and_rerun(tmp_path, 1)


@pytest.mark.soak
def test_so_it_does_at_twenty_random_moments(tmp_path):
    assert kill_and_rerun(tmp_path, 20) >= 10
