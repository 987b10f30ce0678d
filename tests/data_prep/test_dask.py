"""A Dask cluster on this machine: a scheduler and two workers, which `make test-dask` has the packages for."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.beam import BeamRunner
from clipsep_jax.data_prep.ledger import Rejection
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from clipsep_jax.errors import InputError
from tests.data_prep.fakes import files_of, make_inputs, read_fake

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(find_spec("distributed") is None, reason="needs the extra dask; see `make test-dask`"),
]

ROOT = Path(__file__).parents[2]
OPTIONS = {"block_size": 2, "max_rejected": 0.5}


def read_and_tell(source: Input, folder: Path) -> Record | Rejection:
    """Takes its time, and leaves a file that names the worker: the parent of the process that reads."""
    time.sleep(0.3)
    (folder / f"{source.path.stem}.{os.getppid()}").touch()
    return read_fake(source)


@dataclass
class Cluster:
    address: str
    workers: list[subprocess.Popen]


@pytest.fixture
def cluster(request) -> Iterator[Cluster]:
    """Workers without nannies, unless a test asks otherwise: killed ones stay away."""
    nanny = getattr(request, "param", "--no-nanny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    commands = [
        ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        *[["worker", address, "--host", "127.0.0.1", "--nthreads", "1", nanny, "--no-dashboard"]] * 2,
    ]
    processes = []
    try:
        for command in commands:
            arguments = [sys.executable, "-m", "dask", *command]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            environment = os.environ | {"DASK_DISTRIBUTED__WORKER__DAEMON": str(nanny == "--nanny")}
            processes.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, **quiet))
        _wait_for_workers(address, 2)
        yield Cluster(address, processes[1:])
    finally:
        for process in processes:
            (process.terminate if nanny == "--nanny" else process.kill)()  # a nanny takes its worker along
        for process in processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_workers(address: str, number: int) -> None:
    from distributed import Client

    with Client(address, timeout=60) as client:
        client.wait_for_workers(number, timeout=60)


def run_on(cluster: Cluster) -> BeamRunner:
    return BeamRunner("DaskRunner", (f"--dask_client_address={cluster.address}",))


def workers_of(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()}


def test_two_workers_write_the_same_bytes_as_one_machine(cluster, tmp_path):
    (tmp_path / "told").mkdir()
    write_records(make_inputs(20), read_fake, tmp_path / "here", run=PoolRunner(num_workers=0), **OPTIONS)
    read = partial(read_and_tell, folder=tmp_path / "told")
    write_records(make_inputs(20), read, tmp_path / "there", run=run_on(cluster), **OPTIONS)
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")
    assert len(workers_of(tmp_path / "told")) == 2


def test_when_a_worker_is_killed_the_other_does_its_blocks(cluster, tmp_path):
    (tmp_path / "told").mkdir()
    write_records(make_inputs(40), read_fake, tmp_path / "here", run=PoolRunner(num_workers=0), **OPTIONS)

    def kill_one() -> None:
        while len(list((tmp_path / "told").iterdir())) < 8:
            time.sleep(0.05)
        cluster.workers[0].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    read = partial(read_and_tell, folder=tmp_path / "told")
    write_records(make_inputs(40), read, tmp_path / "there", run=run_on(cluster), **OPTIONS)
    killer.join()
    assert cluster.workers[0].wait() != 0
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


def test_when_all_workers_are_gone_a_rerun_goes_on_here(cluster, tmp_path):
    (tmp_path / "told").mkdir()
    write_records(make_inputs(12), read_fake, tmp_path / "here", run=PoolRunner(num_workers=0), **OPTIONS)

    def stop_after_two(blocks, read, num_done):
        run_on(cluster)(blocks[:2], read, num_done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(make_inputs(12), read_fake, tmp_path / "there", run=stop_after_two, **OPTIONS)
    write_records(make_inputs(12), read_fake, tmp_path / "there", run=PoolRunner(num_workers=0), **OPTIONS)
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


@pytest.mark.parametrize("cluster", ["--nanny"], indirect=True)
def test_workers_that_may_start_no_process_are_told_how(cluster, tmp_path):
    with pytest.raises(
        InputError, match=r"daemonic processes .*; start .* with DASK_DISTRIBUTED__WORKER__DAEMON=False"
    ):
        write_records(make_inputs(4), read_fake, tmp_path / "out", run=run_on(cluster), **OPTIONS)


def test_a_cluster_that_does_not_answer_is_an_input_error(tmp_path):
    nowhere = BeamRunner("DaskRunner", ("--dask_client_address=tcp://127.0.0.1:9", "--dask_connection_timeout=2"))
    with pytest.raises(InputError, match="The pipeline on DaskRunner failed"):
        write_records(make_inputs(2), read_fake, tmp_path / "out", run=nowhere)
