"""Tensor files: safetensors and PyTorch's, and one table that renames tensors both ways."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipsep_jax.errors import InputError
from clipsep_jax.files import atomic_write

WEIGHTS_FILE = "model.safetensors"


LINEAR = (1, 0)  # [out, in] -> [in, out]
CONV = (2, 3, 1, 0)  # OIHW -> HWIO
UP_CONV = (1, 2, 3, 0)  # OIHW -> IHWO

_MOST_NAMED = 20


@dataclass(frozen=True)
class Rule:
    """One line of a table that renames tensors, read in both directions.

    Attributes:
        theirs: name of the tensor in the published file. `{word}` stands for letters, digits and underscores.
        ours: dotted path of the variable in our module, with the same `{word}`s; None if it is unused.
        axes: transposition from their layout to ours; None where the layouts agree.
    """

    theirs: str
    ours: str | None
    axes: tuple[int, ...] | None = None

    def their_name(self, path: str) -> str | None:
        """Return the published name of one of our variables, or None if this rule does not apply."""
        words = None if self.ours is None else _match(self.ours, path)
        return None if words is None else self.theirs.format(**words)

    def ignores(self, name: str) -> bool:
        """Return whether a published tensor is known but unused."""
        return self.ours is None and _match(self.theirs, name) is not None

    def our_layout(self, tensor: np.ndarray) -> np.ndarray:
        """Turn a tensor from their layout into ours."""
        return tensor if self.axes is None else tensor.transpose(self.axes)

    def their_layout(self, tensor: np.ndarray) -> np.ndarray:
        """Turn a tensor from our layout into theirs."""
        return tensor if self.axes is None else tensor.transpose(np.argsort(self.axes))

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in their layout of a tensor that has `shape` in ours."""
        return shape if self.axes is None else tuple(shape[axis] for axis in np.argsort(self.axes))


def _match(template: str, text: str) -> dict[str, str] | None:
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\w+)", re.escape(template))
    found = re.fullmatch(pattern, text)
    return found.groupdict() if found else None


def load_tensors(
    module: nnx.Module,
    tensors: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    source: str,
    unused: Mapping[str, tuple[int, ...]] = {},
) -> None:
    """Fill every variable of a module, concrete or abstract, in place; random-number state is left alone.

    Args:
        source: what the tensors were read from, for messages.
        unused: names and shapes of tensors that must be there too, though the module has no place for them.

    Raises:
        InputError: names every tensor that is missing, has another shape or type, or has no place in the module.
    """
    places = {}
    for path, variable in _variables(module):
        name, rule = _published(path, rules)
        places[name] = path, variable, rule
    shapes = {name: rule.their_shape(variable.shape) for name, (_, variable, rule) in places.items()} | dict(unused)
    missing = [name for name in shapes if name not in tensors]
    misshapen = [
        f"{name} {tensors[name].shape} instead of {shape}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    unknown = [name for name in tensors if name not in shapes and not any(rule.ignores(name) for rule in rules)]
    mistyped = [
        f"{name} {tensors[name].dtype}"
        for name, (_, variable, _) in places.items()
        if name in tensors and tensors[name].dtype.kind != np.dtype(variable.dtype).kind
    ]
    faults = {"missing": missing, "of another shape": misshapen, "of another type": mistyped, "unknown": unknown}
    _refuse(source, faults)
    loaded = [
        (path, variable.replace(jnp.asarray(rule.our_layout(tensors[name]), variable.dtype)))
        for name, (path, variable, rule) in places.items()
    ]
    nnx.update(module, nnx.from_flat_state(loaded))


def export_tensors(module: nnx.Module, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Return every variable of a module under its published name and in the published layout."""
    tensors = {}
    for path, variable in _variables(module):
        name, rule = _published(path, rules)
        tensors[name] = np.array(rule.their_layout(np.asarray(variable[...])), order="C")
    return tensors


def _variables(module: nnx.Module) -> list[tuple[tuple, nnx.Variable]]:
    return list(nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.RngState))))


def _published(path: tuple, rules: Sequence[Rule]) -> tuple[str, Rule]:
    dotted = ".".join(map(str, path))
    for rule in rules:
        if (name := rule.their_name(dotted)) is not None:
            return name, rule
    raise KeyError(f"no rule names {dotted}")


def _refuse(source: str, faults: dict[str, list[str]]) -> None:
    named = [f"{kind}: {_listed(names)}" for kind, names in faults.items() if names]
    if named:
        raise InputError(
            f"{source} does not fit the network; use the weights of the configured one ({'; '.join(named)})."
        )


def _listed(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a file of safetensors, or the `model.safetensors` of a folder; half precision becomes float32.

    Raises:
        InputError: the file is missing or damaged, or holds numbers that are not finite in float32.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = path / WEIGHTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path} is missing; save the model with safe serialization (safetensors) first.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); fetch it again.") from error
    return _finite(path, {name: _single_precision(tensor) for name, tensor in tensors.items()})


def _finite(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    most = np.finfo(np.float32).max
    faults = [
        name
        for name, tensor in tensors.items()
        if np.issubdtype(tensor.dtype, np.inexact) and not (np.abs(tensor) <= most).all()
    ]
    if faults:
        raise InputError(f"{path} holds numbers that are not finite (in {_listed(faults)}); take other weights.")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file of safetensors.

    Raises:
        InputError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); restore the file.") from error


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of safetensors, whole or not at all.

    Args:
        metadata: one entry at most, because safetensors writes several in any order, and equal tensors must give equal
            bytes.
    """
    from safetensors.numpy import save

    data = save(dict(tensors), metadata=None if metadata is None else dict(metadata))
    with atomic_write(path) as file:
        file.write(data)


def read_torch_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict that PyTorch saved, with PyTorch's reader that runs no code; floats become float32.

    Raises:
        InputError: PyTorch is not installed, or the file is missing, damaged or holds anything but tensors of finite
            numbers.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path} can only be read by PyTorch; install it (pip install torch).") from error
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader fails in many ways
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")
        raise InputError(f"{path} is damaged or not a plain state dict ({reason}); give another file.") from error
    pairs = values.items() if isinstance(values, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in pairs):
        raise InputError(f"{path} holds more than tensors; save the model's state_dict() alone.")
    floats = {name: value.float() for name, value in values.items() if value.is_floating_point()}
    return _finite(path, {name: tensor.detach().numpy() for name, tensor in (values | floats).items()})


def _single_precision(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32) if tensor.dtype.name in ("float16", "bfloat16") else tensor
