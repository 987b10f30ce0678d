"""Promises of the project's own files."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_requirements_equal_the_runtime_set():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (ROOT / "requirements.txt").read_text().splitlines() == project["dependencies"]


def test_every_library_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = chain(project["dependencies"], *project["optional-dependencies"].values())
    names = {_normal(re.split(r"[\[<>=]", requirement)[0]) for requirement in declared}
    sources = [path for folder in ("clipsep_jax", "configs", "data_prep") for path in (ROOT / folder).rglob("*.py")]
    imported = {name for path in sources for name in _imported(path)}
    providers = packages_distributions()
    for name in imported - set(sys.stdlib_module_names) - {"clipsep_jax"}:
        assert names & {_normal(provider) for provider in providers.get(name, [name])}, name


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imported(path: Path) -> set[str]:
    """The top-level names that a module imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


def test_every_command_in_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"make ([a-z]+)", readme)) <= targets
    from clipsep_jax.cli.main import COMMANDS

    assert set(re.findall(r"clipsep ([a-z][a-z-]+)", readme)) <= set(COMMANDS)
    for path in re.findall(r"\b(?:configs|docs)/[\w./]+\.(?:py|md)", readme):
        assert (ROOT / path).is_file(), path


def test_the_package_imports_light():
    """Heavy libraries load only with the command that needs them."""
    heavy = "{'torch', 'grain', 'librosa', 'av', 'transformers', 'orbax', 'huggingface_hub', 'clipsep_jax.data_prep'}"
    code = f"import sys, clipsep_jax, clipsep_jax.cli.main; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_training_loads_no_pytorch():
    """Not even where a library would use it if it is installed."""
    code = "import sys, clipsep_jax.training.loop; print('torch' in sys.modules); import torch"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "False"


def test_the_map_names_what_is_there():
    named = re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 30
    for name in named:
        places = [ROOT, ROOT / "clipsep_jax", ROOT / "clipsep_jax" / "training", ROOT / "data_prep"]
        assert any((place / name).exists() for place in places), name
