"""Where the time of a run goes: steps, waiting for input, checkpoints, validation, compilation."""

import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jax

from clipsep_jax.errors import InputWarning
from clipsep_jax.terminal import say

# Tracing is left out: its events contain each other.
_COMPILE_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")

KINDS = ("steps", "input", "checkpoint", "validation", "compile")


class Goodput:
    """Shares of the time since it was made. All other time counts as steps, which run while the host waits."""

    def __init__(self) -> None:
        self._compiled = _compile_seconds()
        self._start, self._start_compiled = time.perf_counter(), self._compiled[0]
        self._seconds = dict.fromkeys(("input", "checkpoint", "validation"), 0.0)

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Count what happens inside as "input", "checkpoint" or "validation", except compilation."""
        begin, compiled = time.perf_counter(), self._compiled[0]
        try:
            yield
        finally:
            self._seconds[kind] += time.perf_counter() - begin - (self._compiled[0] - compiled)

    def shares(self) -> dict[str, float]:
        """The share of each of KINDS, which add up to 1."""
        total = time.perf_counter() - self._start
        seconds = self._seconds | {"compile": self._compiled[0] - self._start_compiled}
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


T = TypeVar("T")


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
