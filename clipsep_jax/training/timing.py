"""Where the time of a run goes: steps, devices that wait for input, checkpoints, validation, compilation."""

import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import jax

from clipsep_jax.errors import InputWarning
from clipsep_jax.terminal import say

# Tracing is left out: its events contain each other.
_COMPILE_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")

T = TypeVar("T")

KINDS = ("steps", "input", "checkpoint", "validation", "compile")


class DeviceQueue:
    """How long the devices had nothing to do because a batch was late.

    A thread of its own notes when each step ends on the devices. Once one has ended, they are idle until the next is
    given to them; what the host spent of that time waiting for a batch counts.

    Attributes:
        starved_seconds: so far.
    """

    def __init__(self) -> None:
        self.starved_seconds = 0.0
        self._given: SimpleQueue[tuple[Any, float, float] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def give(self, result: Any, waited_from: float, waited_to: float) -> None:
        """Say that a step was given to the devices, after waiting for its batch; `result` is something it computes."""
        self._given.put((result, waited_from, waited_to))

    def close(self) -> None:
        """Stop watching; a step that hangs is left behind."""
        self._given.put(None)
        self._thread.join(timeout=1)

    def _watch(self) -> None:
        ended = None  # when the step before did
        while given := self._given.get():
            result, waited_from, waited_to = given
            if ended is not None:
                self.starved_seconds += max(0.0, waited_to - max(waited_from, ended))
            try:
                jax.block_until_ready(result)
            except Exception:  # the loop meets it too
                return
            ended = time.perf_counter()


class Goodput:
    """Shares of the time since it was made, as a context manager.

    "input" is the time that the devices waited for a batch (see `DeviceQueue`); checkpoints, validation and compilation
    are the time that the host spent on them; all other time counts as steps.
    """

    def __init__(self) -> None:
        self._compiled = _compile_seconds()
        self._start, self._start_compiled = time.perf_counter(), self._compiled[0]
        self._seconds = dict.fromkeys(("checkpoint", "validation"), 0.0)
        self._queue = DeviceQueue()
        self._waited = (0.0, 0.0)

    def __enter__(self) -> "Goodput":
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.close()

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Count what happens inside as "checkpoint" or "validation", except compilation."""
        begin, compiled = time.perf_counter(), self._compiled[0]
        try:
            yield
        finally:
            self._seconds[kind] += time.perf_counter() - begin - (self._compiled[0] - compiled)

    def next_of(self, batches: Iterator[T]) -> T:
        """The next batch."""
        begin = time.perf_counter()
        batch = next(batches)
        self._waited = (begin, time.perf_counter())
        return batch

    def gave(self, result: Any) -> None:
        """Say that the step of that batch was given to the devices; see `DeviceQueue.give`."""
        self._queue.give(result, *self._waited)

    def shares(self) -> dict[str, float]:
        """The share of each of KINDS, which add up to 1."""
        total = time.perf_counter() - self._start
        compiled = self._compiled[0] - self._start_compiled
        seconds = self._seconds | {"input": self._queue.starved_seconds, "compile": compiled}
        seconds["steps"] = max(0.0, total - sum(seconds.values()))
        return {kind: seconds[kind] / max(total, 1e-9) for kind in KINDS}

    def __str__(self) -> str:
        return "time: " + ", ".join(f"{kind} {share:.0%}" for kind, share in self.shares().items())


@cache
def _compile_seconds() -> list[float]:
    """One number that grows with every compilation of this process."""
    seconds = [0.0]

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event in _COMPILE_EVENTS:
            seconds[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def start_server(port: int) -> None:
    """Lets TensorBoard take profiles of this process over the network, until it ends.

    If the port is taken, such as by another process of the host, it warns and starts none.
    """
    try:  # the server itself would only log it
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        warnings.warn(f"There is no profiler at port {port}: {error.strerror}.", InputWarning, stacklevel=2)
        return
    jax.profiler.start_server(port)


@dataclass
class StepTrace:
    """Records the steps `first` to `last`, counted from 1, into `folder`, where TensorBoard's profiler finds them.

    A run that begins or ends within them records only its own.
    """

    first: int = 0
    last: int = 0  # below 1: none
    folder: Path = Path()
    _begun: int | None = field(default=None, init=False)  # the first step that is recorded
    _running: bool = field(default=False, init=False)

    def run(self, step: int, function: Callable[..., T], *arguments: Any) -> T:
        """Take a step, and record it if it is in the window."""
        if self.first <= step <= self.last and self._begun is None:
            jax.profiler.start_trace(self.folder)
            self._begun, self._running = step, True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*arguments)
        if step == self.last and self._running:
            jax.block_until_ready(result)
            self._stop()
        return result

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        say(f"The trace of steps from {self._begun} on is in {self.folder}.", error=True)

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()
        elif self.last and self._begun is None:
            say(f"No step of this run was from {self.first} to {self.last}: no trace.", error=True)
