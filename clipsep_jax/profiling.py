"""What a run spends its time on, by jax.profiler: a server to look in at any time, and traces of a window of steps."""

import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax
from tqdm import tqdm

from clipsep_jax.structures import InputError

T = TypeVar("T")


def start_server(port: int) -> None:
    """Lets TensorBoard take profiles of this process over the network, until it ends.

    Raises:
        InputError: the port cannot be had.
    """
    try:  # the server itself would only log it
        with socket.socket() as probe:
            probe.bind(("", port))
    except (OSError, OverflowError) as error:
        raise InputError(f"There can be no profiler at port {port} ({error}); give another one.") from error
    jax.profiler.start_server(port)


@dataclass
class StepTrace:
    """Records the steps `first` to `last`, counted from 1, into `folder`, where TensorBoard's profiler finds them.

    A run that begins or ends within them records what it has of them.
    """

    first: int = 0
    last: int = 0  # below 1: none
    folder: Path = Path()
    _recorded: list[int] = field(default_factory=list, init=False)

    def run(self, step: int, function: Callable[..., T], *arguments: Any) -> T:
        """Take a step, and record it where it is in the window."""
        if self.first <= step <= self.last:
            if not self._recorded:
                jax.profiler.start_trace(self.folder)
            self._recorded.append(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*arguments)
        if step == self.last:
            jax.block_until_ready(result)
            self._stop()
        return result

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        told = f"The trace of steps {self._recorded[0]} to {self._recorded[-1]} is in {self.folder}."
        tqdm.write(told, file=sys.stderr)

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._recorded and self._recorded[-1] < self.last:
            self._stop()
        elif self.last and not self._recorded:
            tqdm.write(f"No step of this run was from {self.first} to {self.last}: no trace.", file=sys.stderr)
