"""Tensor files: safetensors and PyTorch's, and one table that renames tensors both ways."""

import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipsep_jax.errors import InputError
from clipsep_jax.files import atomic_write

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "model.safetensors"


LINEAR = (1, 0)  # [out, in] -> [in, out]
CONV = (2, 3, 1, 0)  # OIHW -> HWIO
UP_CONV = (1, 2, 3, 0)  # OIHW -> IHWO

MOST_WEIGHTS_BYTES = 16 * 2**30  # of a file; the largest CLIP that was published has 10 GB
_MOST_TENSORS = 100_000
_MOST_SHARING = 4  # times the size of a file of PyTorch's
_MOST_NAME_LETTERS = 1_000
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
    unused: Mapping[str, np.ndarray] = {},
) -> None:
    """Fill every variable of a module, concrete or abstract, in place; random-number state is left alone.

    Args:
        source: what the tensors were read from, for messages.
        unused: tensors like which others must be there too, though the module has no place for them.

    Raises:
        InputError: names every tensor that is missing, has another shape or type, or has no place in the module.
    """
    places = {}
    for path, variable in _variables(module):
        name, rule = _published(path, rules)
        places[name] = path, variable, rule
    shapes = {name: rule.their_shape(variable.shape) for name, (_, variable, rule) in places.items()}
    types = {name: np.dtype(variable.dtype) for name, (_, variable, _) in places.items()}
    shapes |= {name: tensor.shape for name, tensor in unused.items()}
    types |= {name: tensor.dtype for name, tensor in unused.items()}
    missing = [name for name in shapes if name not in tensors]
    misshapen = [
        f"{name} {tensors[name].shape} instead of {shape}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    unknown = [name for name in tensors if name not in shapes and not any(rule.ignores(name) for rule in rules)]
    mistyped = [
        f"{name} {tensors[name].dtype}"
        for name, dtype in types.items()
        if name in tensors and tensors[name].dtype.kind != dtype.kind
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
    named = [f"{kind}: {listed(names)}" for kind, names in faults.items() if names]
    if named:
        raise InputError(
            f"{source} does not fit the network; use the weights of the configured one ({'; '.join(named)})."
        )


def fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a tensor's name fits one of some patterns, as names of files do (`unet.down.*`)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, the first of many."""
    rest = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a file of safetensors, or the `model.safetensors` of a folder; half precision becomes float32.

    Raises:
        InputError: the file is missing or damaged, or holds numbers that are not finite in float32.
    """
    from safetensors import SafetensorError, safe_open

    path = path / WEIGHTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path} is missing; save the model with safe serialization (safetensors) first.")
    _check_size(path)
    try:
        with safe_open(path, framework="numpy") as file:
            _check_names(path, file.keys())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); fetch it again.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a type that NumPy lacks
        raise InputError(
            f"{path} holds numbers of a type that cannot be read ({error}); save it in float32."
        ) from error
    return _finite(path, {name: _single_precision(tensor) for name, tensor in tensors.items()})


def _check_size(path: Path) -> None:
    if path.stat().st_size > MOST_WEIGHTS_BYTES:
        raise InputError(f"{path} is larger than {MOST_WEIGHTS_BYTES >> 30} GiB; give the weights of a model.")


def _check_names(path: Path, names: Collection[str]) -> None:
    if len(names) > _MOST_TENSORS or any(len(name) > _MOST_NAME_LETTERS for name in names):
        raise InputError(
            f"{path} holds more than {_MOST_TENSORS:,} tensors, or names of more than {_MOST_NAME_LETTERS:,} letters; "
            "give the weights of a model."
        )


def _finite(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    most = np.finfo(np.float32).max
    faults = [
        name
        for name, tensor in tensors.items()
        if np.issubdtype(tensor.dtype, np.inexact) and not (np.abs(tensor) <= most).all()
    ]
    if faults:
        raise InputError(f"{path} holds numbers that are not finite (in {listed(faults)}); take other weights.")
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
    if not path.is_file():
        raise InputError(f"{path} is missing; give a file that PyTorch saved.")
    _check_size(path)
    _check_plain_archive(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader fails in many ways
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")
        raise InputError(f"{path} is damaged or not a plain state dict ({reason}); give another file.") from error
    pairs = values.items() if isinstance(values, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in pairs):
        raise InputError(f"{path} holds more than tensors; save the model's state_dict() alone.")
    _check_names(path, values.keys())
    odd = [name for name, tensor in values.items() if not _is_plain(tensor)]
    if odd:
        raise InputError(f"{path} holds tensors that are not plain arrays ({listed(odd)}); save the model's own.")
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in values.values())
    if num_bytes > _MOST_SHARING * path.stat().st_size:  # of tied weights, or of storages that the file does not fill
        raise InputError(f"{path} holds tensors of {num_bytes:,} bytes, above its size; save the state_dict() again.")
    return _finite(path, {name: _to_numpy(tensor) for name, tensor in values.items()})


def _check_plain_archive(path: Path) -> None:
    """Refuse an archive that takes more memory than its size: PyTorch writes without compression."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [item for item in archive.infolist() if item.compress_type != zipfile.ZIP_STORED]
            num_bytes = sum(item.file_size for item in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:  # the last: of later forms of zip
        raise InputError(f"{path} is damaged ({error}); give another file.") from error
    if packed or num_bytes > path.stat().st_size:
        raise InputError(f"{path} is compressed, which PyTorch's own files are not; save the state_dict() again.")


def _is_plain(tensor: "torch.Tensor") -> bool:
    """Whether a tensor is an array of numbers that lie in memory, each in a place of its own."""
    import torch

    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes() and not tensor.is_conj()


def _to_numpy(tensor: "torch.Tensor") -> np.ndarray:
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().resolve_neg().numpy()


def _single_precision(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32) if tensor.dtype.name in ("float16", "bfloat16") else tensor
