"""A table of embeddings, one per label."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipsep_jax.errors import InputError
from clipsep_jax.files import MOST_LIST_BYTES, check_is_file, decode_json, encode_json
from clipsep_jax.queries.of_records import lookup
from clipsep_jax.tensors import read_metadata, read_tensors, write_tensors

_TENSOR_NAME = "vectors"


def read_table(labels: Path, vectors: Path) -> "EmbeddingTable":
    """A table from a text file with one label per line, and a NumPy file with their embeddings [n, Q].

    Raises:
        InputError: a file is missing or damaged, or they do not fit together.
    """
    try:
        check_is_file(labels, MOST_LIST_BYTES)
        check_is_file(vectors, 4 * MOST_LIST_BYTES)
        names = tuple(line.strip() for line in labels.read_text("utf-8").splitlines() if line.strip())
        return EmbeddingTable(names, _read_vectors(vectors))
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} does not exist; see docs/sentences.md for how to make it.") from error
    except ValueError as error:
        raise InputError(f"{vectors} and {labels} do not make a table of embeddings: {error}.") from error


def _read_vectors(path: Path) -> Float32[np.ndarray, "..."]:
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")  # takes no memory for what a header claims
    except Exception as error:  # NumPy's reader fails in many ways
        raise ValueError(f"the vectors cannot be read ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise ValueError(f"the vectors are {getattr(array, 'dtype', 'several arrays')}, not float32")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        return np.asarray(array, np.float32, copy=True)


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """One embedding per label.

    Raises:
        ValueError: labels repeat, their number is not that of the vectors, or a vector is not finite.
    """

    labels: tuple[str, ...]
    vectors: Float32[np.ndarray, "n Q"]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or not len(set(self.labels)) == len(self.labels) == len(self.vectors):
            raise ValueError("an embedding table needs one vector for each of its labels, all different")
        if not np.isfinite(self.vectors).all():
            raise ValueError("its vectors are not finite")

    def as_dict(self) -> dict[str, Float32[np.ndarray, " Q"]]:
        """The embedding of each label."""
        return dict(zip(self.labels, self.vectors, strict=True))

    @cached_property
    def _of_label(self) -> dict[str, np.ndarray]:
        return self.as_dict()

    def lookup(self, label: str) -> Float32[np.ndarray, " Q"]:
        """Give the embedding of a label.

        Raises:
            InputError: the table lacks the label; the nearest ones are listed.
        """
        return lookup(label, self._of_label)

    def save(self, path: Path) -> None:
        """Write the table as safetensors, the labels as JSON in its metadata."""
        write_tensors(path, {_TENSOR_NAME: self.vectors}, {"labels": encode_json(self.labels).decode().strip()})

    @classmethod
    def load(cls, path: Path) -> "EmbeddingTable":
        """Read a table.

        Raises:
            InputError: the file is missing or is not such a table.
        """
        if not path.is_file():
            raise InputError(f"There is no table of embeddings {path}; make it with `clipsep prepare`.")
        try:
            labels = decode_json(read_metadata(path)["labels"], "the list of labels", "is not JSON", list[str])
            vectors = read_tensors(path)[_TENSOR_NAME]
            if vectors.dtype != np.float32:
                raise ValueError(f"its vectors are {vectors.dtype}, not float32")
            return cls(tuple(labels), vectors)
        except (InputError, KeyError, ValueError) as error:
            raise InputError(f"{path} is not a table of embeddings ({error}); make it again.") from error
