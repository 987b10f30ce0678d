"""A bounded line of work."""

import threading
from concurrent.futures import CancelledError

import pytest

from clipsep_jax.serving.line import Full, Line, Ticket


@pytest.fixture
def line():
    line = Line(most_waiting=2)
    yield line
    line.close()


@pytest.fixture
def gate():
    gate = threading.Event()
    yield gate
    gate.set()


def test_one_after_the_other_in_order_of_arrival(line, gate):
    order = []

    def work(number):
        def run(_):
            gate.wait()
            order.append(number)
            return number

        return run

    tickets = [line.join(work(number)) for number in range(3)]
    assert [line.place(ticket) for ticket in tickets] == [0, 1, 2]
    assert len(line) == 3
    with pytest.raises(Full):
        line.join(work(3))
    gate.set()
    assert [ticket.future.result(5) for ticket in tickets] == order == [0, 1, 2]
    assert len(line) == 0
    assert line.join(work(4)).future.result(5) == 4


def test_who_leaves_makes_room_and_is_not_served(line, gate):
    begun = threading.Event()

    def long(ticket: Ticket) -> None:
        begun.set()
        while not gate.wait(0.01):
            ticket.go_on(0.5)

    first, second, third = line.join(long), line.join(long), line.join(lambda _: 3)
    assert begun.wait(5)
    second.leave()
    assert line.place(third) == 1
    first.leave()
    with pytest.raises(CancelledError):
        first.future.result(5)
    assert third.future.result(5) == 3


def test_what_goes_wrong_reaches_who_waits_and_nobody_else(line):
    def wrong(_):
        raise OSError("full")

    first, second = line.join(wrong), line.join(lambda _: 2)
    with pytest.raises(OSError, match="full"):
        first.future.result(5)
    assert second.future.result(5) == 2
