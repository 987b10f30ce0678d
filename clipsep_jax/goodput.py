"""Where the time of a run goes: steps, waiting for input, checkpoints, validation, compilation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import jax

# Tracing is left out: its events contain each other.
_COMPILE_EVENTS = ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration")

KINDS = ("steps", "input", "checkpoint", "validation", "compile")


class Goodput:
    """Shares of the time since its making. What is nothing else counts as steps, which run while the host waits."""

    def __init__(self) -> None:
        self._compiled = _compile_seconds()
        self._start, self._start_compiled = time.perf_counter(), self._compiled[0]
        self._seconds = dict.fromkeys(("input", "checkpoint", "validation"), 0.0)

    @contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Count what happens inside as "input", "checkpoint" or "validation", but for compilation."""
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
