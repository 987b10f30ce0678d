"""What a run spends its time on, by jax.profiler: a server to look in at any time, and traces of a window of steps."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax
from tqdm import tqdm

from clipsep_jax.structures import InputError

T = TypeVar("T")

_servers: list[Any] = []  # one that nobody holds stops


def start_server(port: int) -> None:
    """Lets TensorBoard or Perfetto take profiles of this process over the network, until it ends.

    Raises:
        InputError: the port cannot be had.
    """
    try:
        _servers.append(jax.profiler.start_server(port))
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"There can be no profiler at port {port} ({error}); give another --profile-server."
        ) from error


@dataclass
class StepTrace:
    """Records the steps `first` to `last`, counted from 1, into `folder`, where TensorBoard's profiler finds them."""

    first: int = 0  # none
    last: int = 0
    folder: Path = Path()
    _running: bool = field(default=False, init=False)

    def run(self, step: int, function: Callable[..., T], *arguments: Any) -> T:
        """Take a step, and record it where it is in the window."""
        if step == self.first:
            jax.profiler.start_trace(self.folder)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*arguments)
        if step == self.last:
            jax.block_until_ready(result)
            self._stop()
        return result

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            tqdm.write(f"The trace of steps from {self.first} on is in {self.folder}.", file=sys.stderr)

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
