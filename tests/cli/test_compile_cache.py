"""Compiled programs are kept for the user alone."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from clipsep_jax.cli.compile_cache import keep_compiled_programs
from clipsep_jax.errors import InputWarning

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache folder of the user's, and a JAX that keeps nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {
        name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
    }
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.skipif(sys.platform != "linux", reason="the place differs elsewhere")
def test_the_folder_is_private(home):
    keep_compiled_programs()
    folder = home / "clipsep-jax" / "xla"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(sys.platform != "linux", reason="the place differs elsewhere")
def test_a_folder_that_others_can_write_to_is_not_used(home):
    folder = home / "clipsep-jax" / "xla"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.warns(InputWarning, match="can be written to by others"):
        keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_the_users_own_choice_stays(home):
    jax.config.update("jax_compilation_cache_dir", str(home / "chosen"))
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(home / "chosen")


def test_without_a_place_to_write_nothing_is_kept(home):
    (home / "clipsep-jax").write_text("in the way")
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the place differs elsewhere")
def test_a_second_run_compiles_nothing(trained, clip_records, tmp_path):
    """Every program that a run looks for is one that the first run has kept."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "clipsep_jax.cli", "evaluate", "--model", str(trained), "--num-mixtures", "2"]
    kept = []
    for _ in range(2):
        subprocess.run([*command, "--records", str(clip_records)], env=environment, cwd=ROOT, check=True)
        kept.append({path.name for path in tmp_path.rglob("*-cache")})
    assert kept[0]
    assert kept[1] == kept[0]
