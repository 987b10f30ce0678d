"""Fixtures shared by all tests. Shapes in signatures are checked at run time."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook(["clipsep_jax", "data_prep"], "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

# The same small networks are compiled in many tests.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings beside the checkout, for the tests that can use it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real recordings beside the checkout")
    return folder
