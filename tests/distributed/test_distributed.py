"""Many devices: batches on their way to them, equal steps, restored states, programs for chips that are not here."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.scaling import abstract_mesh
from clipsep_jax.errors import InputError
from clipsep_jax.training import devices as distributed
from clipsep_jax.training.devices import (
    is_one_of_many,
    local_batch_size,
    make_mesh,
    put_ahead,
    replicated,
    state_sharding,
)


def test_batches_are_put_ahead_and_keep_their_order():
    taken = []

    def batches():
        for number in range(5):
            taken.append(number)
            yield {"sources": np.full((jax.device_count(), 2), number)}

    ahead = put_ahead(batches(), make_mesh())
    first = next(ahead)
    assert taken == [0, 1, 2]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(first))
    assert [int(batch["sources"][0, 0]) for batch in (first, *ahead)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "8"}, False),  # in the batch script itself, outside of srun
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_WORKER_HOSTNAMES": "localhost"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a:1"}, True),
    ],
)
def test_the_environment_tells_of_other_processes(environment, expected, tmp_path):
    assert is_one_of_many(environment, tmp_path) is expected


@pytest.mark.parametrize("chip", ["accel0", "vfio/0"])
def test_a_tpu_host_whose_environment_tells_nothing_may_have_others_beside_it(chip, tmp_path, monkeypatch):
    libtpu = [None]
    monkeypatch.setattr(distributed, "find_spec", lambda name: libtpu[0] if name == "libtpu" else 1 / 0)
    (tmp_path / chip).parent.mkdir(exist_ok=True)
    (tmp_path / chip).touch()
    assert not is_one_of_many({}, tmp_path)  # chips of another maker, perhaps
    libtpu[0] = "there"
    assert is_one_of_many({}, tmp_path)
    assert is_one_of_many({"JAX_PLATFORMS": ""}, tmp_path)
    for alone in ({"TPU_WORKER_HOSTNAMES": "localhost"}, {"TPU_SKIP_MDS_QUERY": "1"}, {"JAX_PLATFORMS": "cpu"}):
        assert not is_one_of_many(alone, tmp_path)
    (tmp_path / chip).unlink()
    assert not is_one_of_many({}, tmp_path)


@pytest.mark.parametrize(
    ("environment", "devices"),
    [({}, None), ({"CUDA_VISIBLE_DEVICES": "5"}, [0]), ({"CUDA_VISIBLE_DEVICES": "0,1"}, None)],
)
def test_a_process_that_sees_one_gpu_takes_it(environment, devices, monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: asked.append((args, options)))
    distributed.start(None, environment)
    assert asked == []
    distributed.start(None, environment | {"SLURM_NTASKS": "8", "SLURM_PROCID": "3"})
    assert asked == [((), {"local_device_ids": devices})]


def test_processes_that_do_not_find_each_other_are_told(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(
        InputError, match=r"find each other \(DEADLINE_EXCEEDED\); start all of them, or name them with"
    ):
        distributed.start(distributed.Cluster("127.0.0.1:1", 2, 0))


def test_a_batch_that_the_devices_cannot_share_is_refused():
    mesh = abstract_mesh(8)
    assert (local_batch_size(32, mesh), local_batch_size(32, mesh, 8)) == (32, 40)
    with pytest.raises(InputError, match=r"batch_size is 30, which 8 devices .* choose a multiple of 8"):
        local_batch_size(30, mesh, 8)
    with pytest.raises(InputError, match=r"num_dropped_pairs is 4, which 8 devices .* choose a multiple of 8"):
        local_batch_size(32, mesh, 4)


def test_fsdp_splits_the_longest_axis_that_can_be_shared():
    shapes = [(512, 4, 4, 256), (6, 4096), (4096, 6), (33, 4099), (8,), ()]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    specs = [s.spec for s in state_sharding(arrays, abstract_mesh(8), "fsdp")]
    assert [tuple(spec) for spec in specs] == [("data",), (None, "data"), ("data",), (), (), ()]
    assert {s.spec for s in state_sharding(arrays, abstract_mesh(8), "replicated")} == {replicated(make_mesh()).spec}


def run_with_eight_devices(folder: Path, *checks: str, bits: int = 32) -> None:
    """Runs checks, and writes down what they say."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    settings = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(bits == 64))}
    command = [sys.executable, "-m", "tests.distributed.eight_devices", str(folder), *checks]
    done = subprocess.run(
        command, env=os.environ | settings, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    (folder / "said").write_text(done.stdout + done.stderr)


def assert_held(check: str, folder: Path) -> None:
    said = (folder / "said").read_text()
    assert f"{check} held" in said.splitlines(), said


@pytest.fixture(scope="module")
def in_float64(made_once) -> Path:
    checks = ("equal_step", "members_spread")
    return made_once("in_float64", lambda folder: run_with_eight_devices(folder, *checks, bits=64))


@pytest.fixture(scope="module")
def restored(made_once) -> Path:
    checks = ("members_restored_on_fewer", "restored_on_fewer")
    return made_once("restored", lambda folder: run_with_eight_devices(folder, *checks))


@pytest.mark.slow
def test_a_step_is_the_same_on_1_and_8_devices(in_float64):
    assert_held("equal_step", in_float64)


@pytest.mark.soak
@pytest.mark.parametrize("bits", [64, 32])
def test_at_five_states_it_is_the_same_on_1_2_4_and_8_devices(tmp_path, bits):
    run_with_eight_devices(tmp_path, "equal_steps", bits=bits)
    assert_held("equal_steps", tmp_path)


@pytest.mark.slow
def test_members_of_a_sweep_are_spread_over_devices(in_float64):
    assert_held("members_spread", in_float64)


@pytest.mark.soak
def test_all_members_are(tmp_path):
    run_with_eight_devices(tmp_path, "all_members_spread", bits=64)
    assert_held("all_members_spread", tmp_path)


@pytest.mark.soak
def test_members_are_restored_on_fewer_devices_bit_for_bit(restored):
    assert_held("members_restored_on_fewer", restored)


@pytest.mark.slow
def test_a_state_is_restored_on_fewer_devices_bit_for_bit(restored):
    assert_held("restored_on_fewer", restored)


def lower_for(clip_folder: Path, *which: str) -> None:
    command = [sys.executable, "-m", "tests.distributed.lowering", str(clip_folder), *which]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout.endswith("held\n"), done.stderr


@pytest.mark.slow
def test_the_whole_step_lowers_for_chips_that_are_not_here(clip_folder):
    lower_for(clip_folder, "tpu", "128")


@pytest.mark.soak
@pytest.mark.parametrize("num_devices", ["8", "128"])
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_so_it_does_for_all_of_them(clip_folder, platform, num_devices):
    lower_for(clip_folder, platform, num_devices)
