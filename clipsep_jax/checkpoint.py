"""Checkpoints of a training run: Orbax, in one small wrapper."""

from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from clipsep_jax.config import CheckpointConfig
from clipsep_jax.structures import InputError

T = TypeVar("T")

LOSS = "validation_loss"


class Checkpoints:
    """The checkpoints of a run: the latest ones, and the one of the least validation loss.

    Saving is asynchronous; `close` (or leaving a `with` block) waits for it.
    """

    def __init__(self, folder: Path, config: CheckpointConfig):
        policies = checkpoint_managers
        keep = [
            policies.LatestN(config.keep_latest),
            policies.BestN(get_metric_fn=lambda metrics: metrics[LOSS], reverse=True, n=1),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            best_fn=lambda metrics: metrics[LOSS],
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        self.folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self.folder, item_handlers=ocp.StandardCheckpointHandler(), options=options
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def latest_step(self) -> int | None:
        """The last finished step that is stored, or None."""
        return self._manager.latest_step()

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
        metrics = None if validation_loss is None else {LOSS: validation_loss}
        self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)

    def restore(self, step: int, like: T) -> T:
        """The stored state of a step, with the structure, types and shardings of `like`.

        Raises:
            InputError: the checkpoint is of another network.
        """
        stored, wanted = _shapes(self._manager.item_metadata(step)), _shapes(like)
        differing = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
        if differing:
            name = differing[0]
            raise InputError(
                f"{self.folder / str(step)} is of another network: {name} is {stored.get(name)} there, "
                f"{wanted.get(name)} by the config ({len(differing)} such tensors); "
                "use the config it was made with, or another --workdir."
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
