"""Checkpoints of a training run: Orbax, checksums of every file, and the config that they belong to."""

import errno
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from clipsep_jax.config import Config, differences
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.files import read_json, sha256_of, write_json
from clipsep_jax.models.clipsep import own_layout, stored_layout
from clipsep_jax.old_options import names_today
from clipsep_jax.training.devices import first_process_alone

T = TypeVar("T")

LOSS = "validation_loss"
CHECKSUMS_NAME = "sha256.json"
DAMAGED_FOLDER = "damaged"  # beside the folder of checkpoints


class Checkpoints:
    """The checkpoints of a run: the latest ones, and the one of the least validation loss.

    Saving is asynchronous; `close` (or leaving a `with` block) waits for it. Once a checkpoint is on disk, `seal`
    writes the SHA-256 of each of its files beside them, which is checked before anything reads them.

    Attributes:
        damaged_folder: where damaged checkpoints are moved to; it exists only if there were any.
    """

    def __init__(self, folder: Path, config: Config, number: int = 0):
        """Open the folder, and move damaged checkpoints aside, each with a warning that names it.

        Args:
            number: unique among those that a process has open and that save at the same time.
        """
        self.folder = folder.absolute()
        self.damaged_folder = self.folder.parent / DAMAGED_FOLDER
        # Before Orbax opens the folder, because it reads the losses of all checkpoints.
        first_process_alone(self._move_damaged_aside)
        policies = checkpoint_managers
        keep = [
            policies.LatestN(config.checkpoint.keep_latest),
            policies.BestN(
                get_metric_fn=lambda metrics: metrics[LOSS],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=lambda metrics: metrics[LOSS],
            best_mode="min",
            cleanup_tmp_directories=True,
            # Hosts wait for each other by name.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=f"checkpoints_{number}"),
        )
        self._config = config.to_dict()
        handlers = {"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def best_loss(self) -> float:
        """The least validation loss of the stored checkpoints, infinite without one."""
        step = self._manager.best_step()
        metrics = self._manager.metrics(step) if step is not None else None
        return float(metrics[LOSS]) if metrics else float("inf")

    def save(self, step: int, state: Any, validation_loss: float | None = None) -> None:
        """Stores a state; a step that is stored already is left as it is."""
        if step in self._manager.all_steps():
            return
        self.wait()
        metrics = None if validation_loss is None else {LOSS: validation_loss}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(stored_layout(state)), config=ocp.args.JsonSave(self._config)
        )
        with self._telling_of_the_disk():
            self._manager.save(step, args=items, metrics=metrics, force=True)

    @contextmanager
    def _telling_of_the_disk(self) -> Iterator[None]:
        """Adds the folder to an error of the disk, which Orbax raises as many types."""
        try:
            yield
        except Exception as error:
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number), str(self.folder)) from error
            raise

    def wait(self) -> None:
        """Wait until a save under way is on disk.

        Raises:
            OSError: the disk is full, or cannot be written to.
        """
        with self._telling_of_the_disk():
            self._manager.wait_until_finished()
        if jax.process_index() == 0:
            self._write_checksums()

    def seal(self) -> None:
        """Write the checksums of a save that has finished; call it often.

        Raises:
            OSError: it has failed: the disk is full, or cannot be written to.
        """
        if not self._manager.is_saving_in_progress():
            self.wait()

    def _write_checksums(self) -> None:
        for step in self._manager.all_steps():
            folder = self.folder / str(step)
            if not (folder / CHECKSUMS_NAME).is_file():
                write_json(folder / CHECKSUMS_NAME, _checksums(folder), indent=1)

    def _move_damaged_aside(self) -> None:
        steps = sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdecimal())
        problems = {step: problem for step in steps if (problem := self._problem(step, step == steps[-1]))}
        whole = [step for step in steps if step not in problems]
        instead = f"the last whole one is of step {whole[-1]}" if whole else "no other one is whole"
        for step, problem in problems.items():
            place = _free_name(self.damaged_folder / str(step))
            place.parent.mkdir(exist_ok=True)
            os.replace(self.folder / str(step), place)
            sentence = f"Checkpoint {step} is damaged ({problem}); it was moved to {place}, and {instead}."
            warnings.warn(sentence, InputWarning, stacklevel=4)

    def _problem(self, step: int, latest: bool) -> str | None:
        """What is wrong with the files of a checkpoint, or None."""
        folder = self.folder / str(step)
        if not (folder / CHECKSUMS_NAME).is_file():
            if not latest:  # its checksums were written before the next save began
                return f"{CHECKSUMS_NAME} is missing"
            warnings.warn(
                f"Checkpoint {step} has no {CHECKSUMS_NAME}: the run was stopped just before it was written. "
                "It is used unchecked.",
                InputWarning,
                stacklevel=5,
            )
            return None
        try:
            wanted = read_json(folder / CHECKSUMS_NAME, "is not JSON", dict)
        except InputError:
            return f"{CHECKSUMS_NAME} is not JSON"
        found = _checksums(folder)
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        return f"{differing[0]} is not as it was written" if differing else None

    @property
    def steps(self) -> list[int]:
        """The steps that are stored; what was damaged when the folder was opened is not among them."""
        return sorted(self._manager.all_steps())

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints after a step."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def check_config(self, step: int, allowed: Iterable[str]) -> None:
        """Compare the config with that of a checkpoint.

        Args:
            allowed: names of options that may differ, such as "train.steps".

        Raises:
            InputError: others differ; the message lists them.
        """
        stored = self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
        changed = differences(Config.from_config_dict(stored).to_dict(), self._config)
        may_differ = {name for option in allowed for name in names_today(option)}
        refused = {name: values for name, values in changed.items() if name not in may_differ}
        if refused:
            text = "; ".join(f"{name} was {before!r}, is {now!r}" for name, (before, now) in refused.items())
            flags = " ".join(f"--allow-change={name}" for name in refused)
            raise InputError(
                f"{self.folder} was started with another config: {text}. "
                f"Resume with the old one, use another --workdir, or allow it by {flags}."
            )

    def restore(self, step: int, like: T) -> T:
        """The stored state of a step, with the structure, types and shardings of `like`.

        Raises:
            InputError: the checkpoint is of another network.
        """
        like = stored_layout(like)
        stored, wanted = _shapes(self._manager.item_metadata(step)["state"]), _shapes(like)
        differing = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
        if differing:
            name = differing[0]
            raise InputError(
                f"{self.folder / str(step)} is of another network: {name} is {stored.get(name)} there, "
                f"{wanted.get(name)} by the config ({len(differing)} such tensors); "
                "use the config it was made with, or another --workdir."
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return own_layout(self._manager.restore(step, args=items)["state"])

    def close(self) -> None:
        """Waits for saves under way.

        Raises:
            OSError: as `wait`.
        """
        try:
            self.wait()
        finally:
            with self._telling_of_the_disk():  # Orbax raises the error of a save again
                self._manager.close()


def _checksums(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS_NAME)
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.{number}") for number in range(1, 1000))
    return path if not path.exists() else next(name for name in names if not name.exists())


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
