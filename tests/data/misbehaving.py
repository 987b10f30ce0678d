"""A query that misbehaves in processes that read, and there alone; in a file of its own, as they import it."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipsep_jax.errors import InputError

ID = "clip4.mp4"  # of the record that it misbehaves at


@dataclass(frozen=True)
class Query:
    """1 if JAX is imported, else 0.

    Attributes:
        what: what it does instead, a method.
        once: a file that says that it was done, and is not to be done again.
    """

    what: str
    once: str = ""
    main: int = os.getpid()

    def __call__(self, record, nearby) -> np.ndarray:
        done = bool(self.once) and Path(self.once).exists()
        if os.getpid() != self.main and record.id == ID and not done:
            Path(self.once or os.devnull).touch()
            getattr(self, self.what)()
        return np.float32(["jax" in sys.modules])

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def give_up(self) -> None:
        raise InputError("This clip will not do.")

    def fail(self) -> None:
        raise ZeroDivisionError("a bug")

    def lose_the_disk(self) -> None:
        raise OSError(5, "Input/output error", "a.tfrecord")

    def lose_a_socket(self) -> None:
        class OfALibrary(OSError):  # it cannot be sent to another process
            def __init__(self) -> None:
                super().__init__(5, "Input/output error")

        raise OfALibrary

    def exit(self) -> None:
        raise SystemExit(3)

    def hang(self) -> None:
        time.sleep(1)

    def nothing(self) -> None:
        pass
