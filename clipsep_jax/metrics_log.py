"""The curves of a run: metrics.jsonl and TensorBoard."""

import json
import os
from pathlib import Path
from typing import Any

from clipsep_jax.files import atomic_write

FILE_NAME = "metrics.jsonl"


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl, without a torn last one."""
    path = workdir / FILE_NAME
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    metrics = []
    for line in lines:
        try:
            metrics.append(json.loads(line))
        except ValueError:
            break
    return metrics


class MetricsLog:
    """Appends scalars; on resuming, what came after the restored step is removed first."""

    def __init__(self, workdir: Path, start: int, writing: bool = True):
        """Open the files; `writing` is for one process of several."""
        self._writing = writing
        if not writing:
            return
        from tensorboardX import SummaryWriter

        workdir.mkdir(parents=True, exist_ok=True)
        kept = [metrics for metrics in read_metrics(workdir) if metrics["step"] <= start]
        with atomic_write(workdir / FILE_NAME) as file:
            file.writelines(json.dumps(metrics).encode() + b"\n" for metrics in kept)
        self._file = (workdir / FILE_NAME).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one line and one point a curve."""
        if not self._writing:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: Any) -> None:
        if not self._writing:
            return
        os.fsync(self._file.fileno())
        self._file.close()
        self._board.close()
