"""Weights of a trained model that a run starts from: fine-tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from clipsep_jax.errors import InputError
from clipsep_jax.model_dir import ModelDir, open_model_dir
from clipsep_jax.models.clipsep import stored_name
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.tensors import fits, listed, read_tensors
from clipsep_jax.training.setup import Run
from clipsep_jax.training.step import TrainState


@dataclass(frozen=True)
class Init:
    """What a run starts from, where it starts.

    Attributes:
        model: a model directory, a training workdir or a hub id.
        skipped: patterns, as of file names, of tensors that the run keeps as it draws them.
    """

    model: str
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class InitialWeights:
    """Parameters and running statistics to start from, by their names in files.

    Attributes:
        source: the model's folder.
        tensors: those that replace the run's own.
        new: names of those that the run keeps as it draws them.
    """

    source: str
    tensors: Mapping[str, np.ndarray]
    new: tuple[str, ...]

    def put_into(self, state: TrainState) -> TrainState:
        """A state with these weights; all models of a sweep start from the same."""
        return replace(state, params=self._put(state.params), batch_stats=self._put(state.batch_stats))

    def _put(self, tree: PyTree) -> PyTree:
        flat = [(path, self._variable(stored_name(path), variable)) for path, variable in nnx.to_flat_state(tree)]
        return nnx.from_flat_state(flat)

    def _variable(self, name: str, variable: nnx.Variable) -> nnx.Variable:
        if name not in self.tensors:
            return variable
        old = variable[...]
        values = np.broadcast_to(self.tensors[name].astype(old.dtype), old.shape)
        return variable.replace(jax.device_put(values, old.sharding))

    @property
    def sentence(self) -> str:
        """What the run starts from, for the user."""
        rest = f"; new are {listed(self.new)}" if self.new else ""
        return f"Training starts from {len(self.tensors)} tensors of {self.source}{rest}."


def read_initial_weights(run: Run, init: Init) -> InitialWeights:
    """The weights of a model, checked against a run.

    Raises:
        InputError: there is no such model, or the networks differ beyond the skipped tensors; what differs is listed.
    """
    found, skipped = open_model_dir(init.model, download=True), init.skipped
    old, shapes = read_tensors(found.folder), run.trainer.shapes
    for pattern in skipped:
        if not any(fits(name, (pattern,)) for name in {*old, *shapes}):
            raise InputError(f"--init-skip {pattern} names no tensor; those of the run are {listed(sorted(shapes))}.")
    new = tuple(name for name in shapes if fits(name, skipped))
    old = {name: tensor for name, tensor in old.items() if not fits(name, skipped)}
    wanted = {name: shape for name, shape in shapes.items() if name not in new}
    _check_shapes(found, old, wanted)
    _check_meaning(found, run, old)
    return InitialWeights(str(found.folder), old, new)


def check_init(run: Run, init: Init | None, workdirs: Sequence[Path]) -> None:
    """Checks what a run would start from before anything is written, unless it has checkpoints to go on from.

    Raises:
        InputError: as `read_initial_weights`.
    """
    if init is not None and not any((workdir / "checkpoints").is_dir() for workdir in workdirs):
        read_initial_weights(run, init)


def _check_shapes(found: ModelDir, old: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> None:
    shared = old.keys() & wanted.keys()
    misshapen = [f"{name} {old[name].shape} there, {wanted[name]} here" for name in wanted if name in shared
                 and old[name].shape != wanted[name]]  # fmt: skip
    faults = {
        "of another shape": misshapen,
        "only there": [name for name in old if name not in shared],
        "only here": [name for name in wanted if name not in shared],
    }
    told = "; ".join(f"{kind}: {listed(names)}" for kind, names in faults.items() if names)
    if told:
        raise InputError(
            f"{found.folder} is another network than the config's ({told}); set the config's model as there, or leave "
            "these tensors out with --init-skip PATTERN."
        )


def _check_meaning(found: ModelDir, run: Run, old: Mapping[str, np.ndarray]) -> None:
    """Equal shapes do not mean that labels or bins have the same numbers."""
    labels = run.kind.labels_of(run.records)
    if labels != found.labels and any(name.startswith("label_embedding") for name in old):
        raise InputError(
            f"{found.folder} was trained on other labels than {run.records.folder} has; leave their embeddings out "
            "with --init-skip 'label_embedding*'."
        )
    asked = any(name.startswith("query_head") for name in old) and kind_of(found.config).has_encoder
    if asked and run.encoder and found.encoder and run.encoder.sha256 != found.encoder.sha256:
        raise InputError(
            f"{found.folder} was trained with the query encoder {found.encoder.name}, the records are of "
            f"{run.encoder.name}; prepare them with that one, or leave the head out with --init-skip 'query_head*'."
        )
    if asked and run.config.query.centre != found.config.query.centre:
        raise InputError(
            f"{found.folder} was trained with config.query.centre = {found.config.query.centre}; set it so here, or "
            "leave the head out with --init-skip 'query_head*'."
        )
    there, here = found.config.spectrogram, run.config.spectrogram
    if replace(there, num_samples=here.num_samples) != here:
        raise InputError(
            f"{found.folder} was trained on other spectrograms ({there}); set the config's options of the same names."
        )
