"""What a run spends its time on, by jax.profiler: a server to look in at any time, and traces of a window of steps."""

import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax
from tqdm import tqdm

from clipsep_jax.structures import InputWarning

T = TypeVar("T")


def start_server(port: int) -> None:
    """Lets TensorBoard take profiles of this process over the network, until it ends.

    Where the port is taken, by another process of the same host for one, a warning says so and there is none.
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

    A run that begins or ends within them records what it has of them.
    """

    first: int = 0
    last: int = 0  # below 1: none
    folder: Path = Path()
    _begun: int | None = field(default=None, init=False)  # the first step that is recorded
    _running: bool = field(default=False, init=False)

    def run(self, step: int, function: Callable[..., T], *arguments: Any) -> T:
        """Take a step, and record it where it is in the window."""
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
        tqdm.write(f"The trace of steps from {self._begun} on is in {self.folder}.", file=sys.stderr)

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()
        elif self.last and self._begun is None:
            tqdm.write(f"No step of this run was from {self.first} to {self.last}: no trace.", file=sys.stderr)
