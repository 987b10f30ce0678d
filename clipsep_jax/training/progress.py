"""What a run tells while it goes: a progress bar or lines, curves, speed, and where the time goes."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from tqdm import tqdm

from clipsep_jax.structures import Batch
from clipsep_jax.terminal import say
from clipsep_jax.training.arithmetic import count_flops, peak_flops
from clipsep_jax.training.flat import Flat
from clipsep_jax.training.setup import Run
from clipsep_jax.training.timing import Goodput


@runtime_checkable
class Curves(Protocol):
    """What it needs of a `Workdir`, whose docstrings say what these do."""

    def read(
        self, step: int, metrics: Mapping[str, Any], losses: dict[str, np.ndarray], counts: Sequence[Any]
    ) -> None: ...
    def shown(self) -> dict[str, str]: ...
    def write(self, step: int, board_only: dict[str, float]) -> None: ...
    def seal(self) -> None: ...


class Progress:
    """Tells of the steps of a run, as a context manager.

    The scalars of a step are fetched after the next one was given to the devices, so that these do not wait.
    """

    def __init__(self, run: Run, curves: Curves, start: int, goodput: Goodput):
        self._run, self._curves, self._goodput = run, curves, goodput
        self._steps = run.config.train.steps
        self._first, self._on_screen = jax.process_index() == 0, sys.stderr.isatty()
        self._counts: list[Any] = []  # of skipped steps, not fetched yet
        self._pending: tuple[int, Mapping[str, Any], list[Any]] | None = None
        self._speed = Speed(run, start)
        shown = self._first and self._on_screen
        self._bar = tqdm(total=self._steps, initial=start, unit="step", desc="train", disable=not shown)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begin(self, state: Flat, batch: Batch, encoder: Flat | None) -> None:
        """Count the arithmetic of a step, before the first one."""
        self._speed.count_arithmetic(state, batch, encoder)

    def took(self, step: int, metrics: Mapping[str, Any]) -> None:
        """A step was given to the devices."""
        self._goodput.gave(metrics["loss"])
        self._bar.update()
        if self._pending:
            self._tell(*self._pending, {})
            self._pending = None
        self._counts.append(metrics["skipped_steps"])

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Tell of a step once the next one was given to the devices."""
        self._pending = (step, metrics, self._counts)
        self._counts = []

    def tell(self, step: int, metrics: Mapping[str, Any], losses: dict[str, np.ndarray], *, write: bool) -> None:
        """Fetch the scalars of a step now, and write them if asked.

        Raises:
            DivergedError: the losses are not finite, or those of too many steps in a row.
        """
        counts, self._counts = self._counts, []
        if write:
            self._tell(step, metrics, counts, losses)
        else:
            self._curves.read(step, metrics, losses, counts)

    def _tell(
        self, step: int, metrics: Mapping[str, Any], counts: Sequence[Any], losses: dict[str, np.ndarray]
    ) -> None:
        self._curves.read(step, metrics, losses, counts)
        shown = self._curves.shown()
        self._bar.set_postfix(shown, refresh=False)
        figures = self._speed.since_last(step)
        self._curves.write(step, figures | self._goodput.shares())
        if self._first and not self._on_screen:
            text = " ".join(f"{name} {value}" for name, value in shown.items())
            say(f"step {step}/{self._steps} {text} {figures['steps_per_second']:.2f} steps/s", error=True)
        with self._goodput.during("checkpoint"):
            self._curves.seal()

    def sum_up(self, step: int, last: bool) -> None:
        """Say where the time went up to a step, and how fast it was: at the end, and in a file after validations."""
        if self._first and (last or not self._on_screen):
            say("; ".join([str(self._goodput), *self._speed.words(step)]), error=True)


class Speed:
    """Steps and examples a second, bytes that were read, use and memory of the devices."""

    def __init__(self, run: Run, start: int):
        self._run = run
        self._size = run.config.data.batch_size
        self._flops: float | None = None  # of a step, on all devices
        self._peak = peak_flops(jax.devices()[0].device_kind, run.config.train.precision)
        self._start = self._last = (start, time.perf_counter())

    def count_arithmetic(self, state: Flat, batch: Batch, encoder: Flat | None) -> None:
        """Count that of a step, if the devices' peak is known."""
        if self._peak:
            trainer = self._run.trainer
            self._flops = count_flops(trainer.compiled_train_step.trace(state, batch, trainer.recipe, encoder).jaxpr)

    def since_last(self, step: int) -> dict[str, float]:
        """The figures since the last call, for TensorBoard."""
        now = (step, time.perf_counter())
        figures, self._last = self._between(self._last, now), now
        return figures

    def _between(self, begin: tuple[int, float], end: tuple[int, float]) -> dict[str, float]:
        rate = (end[0] - begin[0]) / max(end[1] - begin[1], 1e-9)
        figures = {"steps_per_second": rate, "examples_per_second": rate * self._size}
        figures["gigabytes_read"] = self._run.train_batches.num_bytes_read / 1e9
        if self._flops and self._peak:
            figures["mfu"] = rate * self._flops / (self._peak * jax.device_count())
        memory: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            figures["device_gigabytes_peak"] = memory["peak_bytes_in_use"] / 1e9
        return figures

    def words(self, step: int) -> list[str]:
        """The figures from the start to a step, for people."""
        figures = self._between(self._start, (step, time.perf_counter()))
        words = [f"{figures['examples_per_second']:.1f} examples/s", f"{figures['gigabytes_read']:.2f} GB read"]
        if "mfu" in figures:
            words.append(f"{figures['mfu']:.0%} of the devices' peak arithmetic (MFU)")
        if "device_gigabytes_peak" in figures:
            words.append(f"{figures['device_gigabytes_peak']:.1f} GB of device memory at most")
        return words
