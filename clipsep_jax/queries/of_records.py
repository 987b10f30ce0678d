"""Training queries of records. It imports no JAX, and its functions can be sent to the processes that read."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from clipsep_jax.data.clips import QueryOf
from clipsep_jax.data.record import Record
from clipsep_jax.data.stored import StoredRecord
from clipsep_jax.errors import InputError
from clipsep_jax.queries.prompts import nearest_labels


def mean_of_pictures(record: Record | StoredRecord, nearby: np.ndarray) -> Float32[np.ndarray, " Q"]:
    """The mean of the embeddings of some pictures."""
    assert record.frame_embeddings is not None
    return record.frame_embeddings[nearby].mean(axis=0)


def each_picture(record: Record | StoredRecord, nearby: np.ndarray) -> Float32[np.ndarray, "R Q"]:
    """The embeddings of some pictures."""
    assert record.frame_embeddings is not None
    return np.asarray(record.frame_embeddings[nearby])


def lookup(label: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """What belongs to a label.

    Raises:
        InputError: nothing does; the nearest labels are listed.
    """
    if label not in values:
        nearest = ", ".join(nearest_labels(label, list(values)))
        raise InputError(f"There is no embedding of the label {label!r}; the nearest are {nearest}.")
    return values[label]


@dataclass(frozen=True)
class OfLabel:
    """What belongs to a record's label, such as its embedding."""

    values: Mapping[str, np.ndarray]

    def __call__(self, record: Record | StoredRecord, nearby: np.ndarray) -> np.ndarray:
        return lookup(record.label, self.values)


@dataclass(frozen=True)
class Less:
    """A query less a mean."""

    query: QueryOf
    mean: np.ndarray

    def __call__(self, record: Record | StoredRecord, nearby: np.ndarray) -> np.ndarray:
        return self.query(record, nearby) - self.mean


@dataclass(frozen=True)
class Several:
    """The queries of a record by several functions, each of which gives one [Q] or some [V Q], along one axis."""

    queries: tuple[QueryOf, ...]

    def __call__(self, record: Record | StoredRecord, nearby: np.ndarray) -> np.ndarray:
        return np.concatenate([np.atleast_2d(query(record, nearby)) for query in self.queries])
