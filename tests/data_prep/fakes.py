"""A fake encoder and readers that need no video files; worker processes import this module."""

import io
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.ledger import Rejection
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.encoders.base import Encoder


class FakeEncoder(Encoder):
    """Embeds a picture as its mean color, a text as its length; remembers the shapes it was given."""

    name = "fake"
    sha256 = "0" * 64
    query_size = 3

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()

    def embed_frames(self, frames: np.ndarray) -> np.ndarray:
        self.shapes.add(frames.shape)
        return frames.mean(axis=(1, 2), dtype=np.float32)

    def embed_text(self, texts: list[str]) -> np.ndarray:
        return np.array([[len(text), text.count("o"), 1] for text in texts], np.float32)


def jpeg(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (224, 224), (level, level // 2, 10)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def make_inputs(num: int, folder: Path = Path("nowhere")) -> list[Input]:
    """Inputs whose number is in their id; every third is for testing."""
    return [
        Input(f"{n:03d}.mp4", folder / f"{n:03d}.mp4", "dog" if n % 2 else "cat", "train" if n % 3 else "test")
        for n in range(num)
    ]


def read_fake(source: Input) -> Record | Rejection:
    """Every fifth input is silent; input n has 1 + n % 3 pictures."""
    number = int(source.path.stem)
    if number % 5 == 4:
        return Rejection("silent", "its peak is -80 dBFS")
    audio = np.full(16_000 + number, 1 + number, np.int16)
    return Record(source.id, source.label, audio, tuple(jpeg(20 * i + number) for i in range(1 + number % 3)))


def read_sound_alone(source: Input) -> Record | Rejection:
    return Record(source.id, source.label, np.full(16_000, 1 + int(source.path.stem), np.int16), ())


def read_nothing(source: Input) -> Record | Rejection:
    return Rejection("no_audio", "it has no audio stream")


def die_at_003(source: Input) -> Record | Rejection:
    if source.path.stem == "003":
        os.kill(os.getpid(), signal.SIGKILL)
    return read_fake(source)


def die_after_the_first_003(source: Input) -> Record | Rejection:
    """After input 3 was read for the first time, the process ends a moment later, when it has given its outcome."""
    if source.path.stem == "003":
        mark = Path(source.label)  # a place of the test's own
        if not mark.exists():
            mark.touch()
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
            time.sleep(0.1)
    return read_fake(source)


def hang_at_003(source: Input) -> Record | Rejection:
    if source.path.stem == "003":
        time.sleep(600)
    return read_fake(source)


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
