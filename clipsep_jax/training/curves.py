"""The curves of a run: metrics.jsonl and TensorBoard."""

import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from clipsep_jax.errors import InputError
from clipsep_jax.files import MOST_LINE_BYTES, check_json, decode_json, encode_json, naming, write_json_lines
from clipsep_jax.training.tensorboard import Board

FILE_NAME = "metrics.jsonl"


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl, without an incomplete last one."""
    path = workdir / FILE_NAME
    metrics = list[dict[str, Any]]()
    if not path.is_file():
        return metrics
    with path.open("rb") as file, suppress(InputError):
        while line := file.readline(MOST_LINE_BYTES):
            values = decode_json(line, path, "is torn.", dict)
            check_json(values.get("step"), path, "is torn.", int)
            if not all(type(value) in (int, float) for value in values.values()):  # NaN is a value that a loss can have
                break
            metrics.append(values)
    return metrics


class MetricsLog:
    """Appends scalars; on resuming, what came after the restored step is removed first.

    Attributes:
        board: only TensorBoard, for pictures, sounds and what differs between equal runs; None where another process
            writes.
    """

    def __init__(self, workdir: Path, start: int, writing: bool = True):
        """Open the files; `writing` is true in one process."""
        self.board: Board | None = None
        if not writing:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / FILE_NAME
        kept = [metrics for metrics in read_metrics(workdir) if metrics["step"] <= start]
        write_json_lines(self._path, kept)
        self._file = self._path.open("ab")
        self.board = Board(workdir / "tensorboard", start)

    def write(self, step: int, metrics: dict[str, float], board_only: dict[str, float] | None = None) -> None:
        """Appends one line and one point per curve; `board_only` has curves only for TensorBoard."""
        if self.board is None:
            return
        with naming(self._path):
            self._file.write(encode_json({"step": step, **metrics}))
            self._file.flush()
        for name, value in (metrics | (board_only or {})).items():
            self.board.scalar(name, step, value)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self.board is None:
            return
        # After an error, such as a full disk, closing may meet the same one.
        with suppress(OSError) if kind else nullcontext():
            os.fsync(self._file.fileno())
        with suppress(OSError) if kind else nullcontext():
            self._file.close()
        with suppress(OSError) if kind else nullcontext():
            self.board.close()
