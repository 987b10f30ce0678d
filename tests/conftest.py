"""Fixtures shared by all tests. Shapes in signatures are checked at run time."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# An unwanted precision or a shape that was not meant is an error, in processes of their own too.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"


def _quick_to_compile() -> str:
    """Flags for programs that run a few times, where optimising costs six times what it saves.

    `XLA_FLAGS= make test` compiles as users do. XLA ends the process at a flag that it does not know, so another one
    tries them.
    """
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    flags += "--xla_cpu_parallel_codegen_split_count=1"  # the cores are busy with other tests
    tried = [sys.executable, "-c", "import jax; jax.devices()"]
    known = subprocess.run(tried, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, check=False)
    return "" if known.returncode else flags


if "XLA_FLAGS" not in os.environ:  # once for all workers
    os.environ["XLA_FLAGS"] = _quick_to_compile()
# Each worker has a core, and threads of a library that wait for each other would take it from the others.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
# The same small networks are compiled in many tests, some of them in processes of their own.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "xla")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(["clipsep_jax"], "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_collection_finish() -> None:
    """Keep Python's garbage collector from walking over all modules again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _release_programs() -> Iterator[None]:
    """Each loaded program takes some of the 65,530 memory maps that Linux lets a process have."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def _share_programs() -> Iterator[None]:
    """Trainers whose steps are the same program use the one that is compiled already."""
    from tests.shared_programs import sharing_programs

    with sharing_programs():
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings beside the checkout, for the tests that can use it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real recordings beside the checkout")
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Gives the folder of a name, filled by a function when the first worker asks for it; tests must not change it."""
    from filelock import FileLock

    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def folder(name: str, fill: Callable[[Path], object]) -> Path:
        with FileLock(root / f"{name}.lock"):
            if not (root / f"{name}.made").exists():
                fill(root / name)
                (root / f"{name}.made").touch()
        return root / name

    return folder


@pytest.fixture(scope="session")
def clip_folder(made_once) -> Path:
    """A random CLIP of the least size, as a Hugging Face folder."""
    from tests.encoders.tiny_clip import make_tiny_clip_folder
    from tests.small import QUERY_SIZE

    return made_once("clip", lambda folder: make_tiny_clip_folder(folder, projection_dim=QUERY_SIZE))


@pytest.fixture(scope="session")
def clip_records(made_once, clip_folder) -> Path:
    """Small records whose embeddings are those of `clip_folder`."""
    from clipsep_jax.encoders.clip import load_clip
    from tests.small import make_records

    return made_once("clip_records", lambda folder: make_records(folder, encoder=load_clip(str(clip_folder))))


@pytest.fixture(scope="session")
def trained(made_once, clip_records) -> Path:
    """The workdir of a finished run of the least size."""
    from clipsep_jax.training.loop import train
    from tests.small import small_config

    return made_once("trained", lambda folder: train(small_config(clip_records), folder))
