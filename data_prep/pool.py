"""Reading many inputs, each under a time limit in a child process, so that no file can end the run."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import TracebackType

from pebble import ProcessExpired, ProcessPool

from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.ledger import Rejection
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.errors import InputError

Outcome = Record | Rejection
Reader = Callable[[Input], Outcome]  # a module-level function, or a partial of one, so that it can be pickled

DIED = "its decoder died"

_MAX_POOLS = 5  # pools that one input may break
_AHEAD = 4  # inputs queued for each process


class ReaderPool:
    """Processes that read inputs, as a context manager.

    A child that takes too long or dies is replaced, and its input is rejected.
    """

    def __init__(self, read: Reader, num_workers: int, time_limit_seconds: float) -> None:
        """Start nothing yet; without workers, inputs are read in this process without a time limit."""
        self._read = read
        self._num_workers = num_workers
        self._limit = time_limit_seconds
        self._pool: ProcessPool | None = None

    def __enter__(self) -> "ReaderPool":
        if self._num_workers:
            context = multiprocessing.get_context("spawn")  # forking a process with threads is unsafe
            self._pool = ProcessPool(self._num_workers, initializer=_start_child, context=context)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.stop()
            self._pool.join()

    def outcomes(self, inputs: Iterable[Input]) -> Iterator[Outcome]:
        """The outcomes in the order of the inputs, of which a bounded number is read ahead.

        Raises:
            InputError: children keep dying before they read anything.
        """
        pending: deque[tuple[Input, Future | Rejection]] = deque()
        for source in inputs:
            pending.append((source, self._begin(source)))
            if len(pending) > _AHEAD * self._num_workers:
                yield self._first(pending)
        while pending:
            yield self._first(pending)

    def _begin(self, source: Input) -> Future | Rejection:
        if source.duplicate_of:
            again = source.duplicate_of == source.id
            return Rejection("duplicate", "it is listed again" if again else f"it is the same as {source.duplicate_of}")
        future: Future = Future()
        if not self._pool:
            future.set_result(self._read(source))
            return future
        try:
            return self._pool.schedule(self._read, (source,), timeout=self._limit)
        except RuntimeError:  # the pool is broken
            future.set_exception(BrokenProcessPool())
            return future

    def _first(self, pending: "deque[tuple[Input, Future | Rejection]]") -> Outcome:
        """Wait for the first outcome; if the pool breaks, start a new one."""
        for _ in range(_MAX_POOLS):
            try:
                outcome = self._end(pending[0][1])
                pending.popleft()
                return outcome
            except BrokenProcessPool:  # a child died while it was idle
                self.__exit__(None, None, None)
                self.__enter__()
                for number, (source, begun) in enumerate(pending):
                    if isinstance(begun, Future) and (not begun.done() or begun.exception()):
                        pending[number] = (source, self._begin(source))
        raise InputError("Reader processes are killed at once; memory may be short: try fewer --workers.")

    def _end(self, pending: Future | Rejection) -> Outcome:
        if isinstance(pending, Rejection):
            return pending
        try:
            return pending.result()
        except TimeoutError:
            return Rejection("timeout", f"it took longer than {self._limit:g} s")
        except ProcessExpired as error:
            return Rejection("undecodable", f"{DIED} ({_cause(error.exitcode)})")


def _cause(exit_code: int) -> str:
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"exit code {exit_code}"


def _start_child() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End when the parent is killed, instead of waiting for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
