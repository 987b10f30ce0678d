"""Devices, mesh and shardings. One code path from one device to many."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clipsep_jax.structures import InputError

T = TypeVar("T")

NUM_AHEAD = 2


def make_mesh() -> Mesh:
    """All devices along one axis, `data`, over which batches are split."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of values that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of values whose first axis is the global batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def local_batch_size(batch_size: int, mesh: Mesh) -> int:
    """This process's share of a global batch.

    Raises:
        InputError: the devices cannot share the batch evenly.
    """
    num_devices = mesh.shape["data"]
    if batch_size % num_devices:
        raise InputError(
            f"config.data.batch_size is {batch_size}, which {num_devices} devices cannot share evenly; "
            f"choose a multiple of {num_devices}."
        )
    return batch_size // jax.process_count()


def put_batch(batch: T, mesh: Mesh) -> T:
    """Host arrays of this process's share -> device arrays of the global batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def put_ahead(batches: Iterable[T], mesh: Mesh) -> Iterator[T]:
    """Batches of device arrays, NUM_AHEAD of them on their way to the devices while one is in use."""
    waiting: deque[T] = deque()
    for batch in batches:
        waiting.append(put_batch(batch, mesh))
        if len(waiting) > NUM_AHEAD:
            yield waiting.popleft()
    yield from waiting
