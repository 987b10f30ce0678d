"""How a run ends early: on request, saved, all hosts at the same step; or by force, if a step hangs."""

import faulthandler
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import jax
from jax.experimental import multihost_utils

from clipsep_jax.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED


class Interrupted(KeyboardInterrupt):
    """Training stopped early on request, after saving `step`.

    Attributes:
        exit_code: 75 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, step: int, exit_code: int):
        super().__init__(f"stopped after step {step}; the same command resumes from there")
        self.step = step
        self.exit_code = exit_code


@dataclass
class StopRequest:
    """Set by the first Ctrl-C or SIGTERM; the loop checks it between steps."""

    exit_code: int | None = None

    def stops_at(self, step: int) -> bool:
        """Whether the run ends after `step`, the same on all hosts.

        On several, SIGTERM to one host makes JAX's coordination service choose a step that none has passed.
        """
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.exit_code = self.exit_code or EXIT_PREEMPTED
            return True
        return self.exit_code is not None and jax.process_count() == 1


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request; the second one acts as usual.

    Only the main thread can take signals; elsewhere nothing is changed. On several hosts SIGTERM is left to JAX, and
    SIGINT becomes SIGTERM, so that all of them stop.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    several = jax.process_count() > 1

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
        signal.signal(number, before[number])
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    before = {int(number): signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Watchdog:
    """Ends the process with exit code 1, after all its stacks on stderr, unless `step` is called often enough."""

    def __init__(self, limit_seconds: int):
        self._limit_seconds = limit_seconds
        self._said = -math.inf

    def __enter__(self) -> "Watchdog":
        self.step()
        return self

    def step(self) -> None:
        """Say that there is progress."""
        now = time.monotonic()
        if now - self._said < self._limit_seconds / 100 or sys.__stderr__ is None:  # each time starts a thread
            return
        self._said = now
        faulthandler.dump_traceback_later(self._limit_seconds, exit=True, file=sys.__stderr__)

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
