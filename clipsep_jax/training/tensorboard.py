"""TensorBoard's event files."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from clipsep_jax.files import naming

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class _NotInstalled(MetaPathFinder):
    """Hides a package from imports; None in `sys.modules` would meet scipy, which asks for its attributes."""

    def __init__(self, name: str):
        self._name = name

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == self._name:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@contextmanager
def _as_if_not_installed(name: str) -> Iterator[None]:
    hidden = _NotInstalled(name)
    sys.meta_path.insert(0, hidden)
    yield
    sys.meta_path.remove(hidden)


with _as_if_not_installed("torch"):  # tensorboardX would load it, for half of a run's start-up time
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

_FLUSH_SECONDS = 10


class Board:
    """One event file, written by the calling thread, so that the error of a full disk is raised there.

    tensorboardX's own SummaryWriter writes in a thread of its own; once that has died, its queue fills and adding to it
    hangs.
    """

    def __init__(self, folder: Path, start: int):
        """Begin a file; TensorBoard drops what earlier ones hold of steps after `start`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._writer = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()
        if start:
            self._write(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **event: Any) -> None:
        with naming(self._folder):
            self._writer.write_event(Event(wall_time=time.time(), **event))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()

    def scalar(self, name: str, step: int, value: float) -> None:
        """A point of a curve."""
        self._write(step=step, summary=summary.scalar(name, value))

    def picture(self, name: str, step: int, figure: "Figure") -> None:
        """A picture."""
        file = BytesIO()
        figure.savefig(file, format="png", dpi=110)
        image = Summary.Image(encoded_image_string=file.getvalue(), colorspace=4)
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def sound(self, name: str, step: int, wave: Float[np.ndarray, " L"], sample_rate_hz: int) -> None:
        """A sound, clipped to [-1, 1]."""
        wave = np.clip(np.nan_to_num(wave), -1, 1)
        self._write(step=step, summary=summary.audio(name, wave, sample_rate=sample_rate_hz))

    def close(self) -> None:
        """Write the rest, and close the file."""
        with naming(self._folder):
            self._writer.close()
