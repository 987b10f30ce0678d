"""Processes, devices, mesh and shardings. One code path from one device to many hosts."""

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from clipsep_jax.errors import InputError

T = TypeVar("T")
Number = TypeVar("Number", int, float)

NUM_AHEAD = 2

_AXES = ("data", "model")
_LEAST_SHARDED = 2**12  # values of an array; less is not worth the traffic


@dataclass(frozen=True)
class Cluster:
    """The processes of a run, if flags name them."""

    coordinator: str  # HOST:PORT of process 0
    num_processes: int
    process_id: int


def start(cluster: Cluster | None = None, environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes of the run: those of `cluster`, or those in the environment.

    SLURM, Open MPI and TPU hosts are recognised; with one process, nothing is done. Call it before
    anything asks for a device.

    Raises:
        InputError: the other processes did not join.
    """
    try:
        if cluster is not None:
            jax.distributed.initialize(
                cluster.coordinator, cluster.num_processes, cluster.process_id, cluster_detection_method="deactivate"
            )
        elif is_one_of_many(environment):
            jax.distributed.initialize(local_device_ids=_own_gpus(environment))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"The processes of the run did not find each other ({error}); start all of them, or name them with "
            "--coordinator, --num-processes and --process-id."
        ) from error


def is_one_of_many(environment: Mapping[str, str], devices: Path = Path("/dev")) -> bool:
    """Whether this may be one process of several, by the environment of SLURM, Open MPI or a TPU host.

    A TPU host without the environment of GKE asks the metadata server of its virtual machine, which JAX does.
    """
    counts = [environment.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    in_step = "SLURM_PROCID" in environment or "OMPI_COMM_WORLD_SIZE" in environment
    if in_step and any(count.isdecimal() and int(count) > 1 for count in counts):
        return True
    if "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return True
    hosts = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    if hosts is not None:
        return "," in hosts
    asked_for = "tpu" in (environment.get("JAX_PLATFORMS") or "tpu") and "TPU_SKIP_MDS_QUERY" not in environment
    has_chips = any(devices.glob("accel[0-9]*")) or any(devices.glob("vfio/[0-9]*"))
    return asked_for and has_chips and find_spec("libtpu") is not None


def _own_gpus(environment: Mapping[str, str]) -> list[int] | None:
    """The first GPU, if the launcher shows only one; JAX would take that of the process's number on its host."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES", ""))
    return [0] if visible and "," not in visible else None


def broadcast_from_first(value: Number) -> Number:
    """The first process's value, in all of them."""
    if jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.array(value)))


def first_process_alone(work: Callable[[], object]) -> None:
    """Do something in the first process while the others wait.

    What it raises, all of them raise: the others an InputError or an OSError that refers to the first.
    """
    error: Exception | None = None
    if jax.process_index() == 0:
        try:
            work()
        except Exception as met:
            error = met
    problem = broadcast_from_first(0 if error is None else 1 if isinstance(error, InputError) else 2)
    if error:
        raise error
    if problem:
        raise (InputError if problem == 1 else OSError)("The first process failed; see its message")


def make_mesh(devices: Sequence[jax.Device] | None = None, num_models: int = 1) -> Mesh:
    """All devices, or the given ones: batches are split along the axis `data`, models trained together along `model`.

    The axis `model` is as long as the models and the devices of one host allow, because each host brings its own
    part of a batch.
    """
    devices = jax.devices() if devices is None else devices
    num_local = sum(device.process_index == devices[0].process_index for device in devices)
    num_model = math.gcd(num_models, num_local)
    types = (AxisType.Auto,) * 2
    if num_model == 1:
        return jax.make_mesh((len(devices), 1), _AXES, axis_types=types, devices=devices)
    by_host = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(by_host).reshape(-1, num_model), _AXES, axis_types=types)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of values that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of values whose first axis is the global batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_sharding(state: PyTree, mesh: Mesh | AbstractMesh, kind: str) -> PyTree:
    """The sharding of each array of a state: whole everywhere ("replicated"), or in parts over `data` ("fsdp").

    With "fsdp" the longest axis that the devices can share evenly is split, of arrays of some size.
    """
    num_devices = mesh.shape["data"]

    def of(array: jax.ShapeDtypeStruct | jax.Array) -> NamedSharding:
        axes = [axis for axis, length in enumerate(array.shape) if length % num_devices == 0]
        if kind == "replicated" or num_devices == 1 or not axes or array.size < _LEAST_SHARDED:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "data"))

    return jax.tree.map(of, state)


def local_batch_size(batch_size: int, mesh: Mesh | AbstractMesh, spare: int = 0) -> int:
    """This process's share of a global batch and of `spare` examples more.

    Raises:
        InputError: the devices cannot share either evenly.
    """
    num_devices = mesh.shape["data"]
    for name, size in (("batch_size", batch_size), ("num_dropped_pairs", spare)):
        if size % num_devices:
            raise InputError(
                f"config.data.{name} is {size}, which {num_devices} devices (in a sweep: groups of them) cannot share "
                f"evenly; choose a multiple of {num_devices}."
            )
    return (batch_size + spare) // jax.process_count()


def put_batch(batch: T, mesh: Mesh) -> T:
    """Host arrays of this process's share -> device arrays of the global batch."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def put_numbers(tree: T, mesh: Mesh) -> T:
    """Numbers, or arrays of them, that all processes hold -> arrays on every device."""
    place = replicated(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, np.asarray(jnp.asarray(x))), tree)


def put_ahead(batches: Generator[T, None, None], mesh: Mesh) -> Generator[T, None, None]:
    """Batches of device arrays, NUM_AHEAD of them on their way to the devices while one is in use.

    Closing it closes `batches`.
    """
    waiting: deque[T] = deque()
    with closing(batches):
        for batch in batches:
            waiting.append(put_batch(batch, mesh))
            if len(waiting) > NUM_AHEAD:
                yield waiting.popleft()
        yield from waiting
