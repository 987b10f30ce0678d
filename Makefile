# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

# Every process of a test would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo install test check types quick soak test-tfds test-dask test-page docs bench bench-gpu traffic clean

demo: .venv/.runtime
	$(BIN)/clipsep demo --out runs/demo

test: .venv/.test
	$(BIN)/pytest -n auto --dist worksteal -m "not soak and not page"

install: .venv/.test

# Mypy works on one core, so the quick tests run beside it.
check: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(MAKE) --jobs=2 types quick

types: .venv/.test
	$(BIN)/mypy

quick: .venv/.test
	$(BIN)/pytest -n auto --dist worksteal -m "not slow and not soak and not page"

soak: .venv/.test
	$(BIN)/python -m tests.robustness.fuzz
	$(BIN)/pytest -m soak

test-tfds: .venv/.test .venv-tfds/.ready
	$(BIN)/python -m tests.tfds.write_records build/tfds
	.venv-tfds/bin/python tests/tfds/read_records.py build/tfds

test-dask: .venv/.dask
	$(BIN)/pytest -m soak tests/data_prep/test_dask.py

test-page: .venv-page/.ready
	.venv-page/bin/pytest -m page tests/serving

docs: .venv-docs/.ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --site-dir build/site

bench: .venv/.bench
	$(BIN)/python -m benchmarks

bench-gpu:
	$(PYTHON) -m benchmarks.gpu

traffic: .cuda/.ready
	JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks.traffic --write

# Compiled on all cores: pip uses one, and test workers that start at once would each compile the same modules.
define install
	$(BIN)/python -m pip install --quiet --no-compile --editable "$(1)"
	$(BIN)/python -m compileall -q -j 0 -x "/tests/|/testing/" .venv/lib
endef

.venv/.python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/.runtime: .venv/.python pyproject.toml
	$(call install,.)
	touch $@

.venv/.test: .venv/.python pyproject.toml
	$(call install,.[test])
	touch .venv/.runtime $@

.venv/.bench: .venv/.test
	$(call install,.[bench])
	touch $@

.venv/.dask: .venv/.test
	$(call install,.[dask])
	touch $@

# TensorFlow wants other versions of what JAX uses too.
.venv-tfds/.ready:
	$(PYTHON) -m venv .venv-tfds
	.venv-tfds/bin/python -m pip install --quiet --upgrade pip
	.venv-tfds/bin/python -m pip install --quiet tensorflow-cpu "tensorflow-datasets>=4.9.6" soundfile
	touch $@

# Gradio holds other versions of what the tests use too. The browser is Debian's.
.venv-page/.ready: pyproject.toml
	command -v chromium || (apt-get update && apt-get install --yes chromium)
	$(PYTHON) -m venv .venv-page
	.venv-page/bin/python -m pip install --quiet --editable ".[serve,test,page]"
	touch $@

.venv-docs/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --editable ".[docs]"
	touch $@

# JAX compiles for a GPU with this, on any machine; where it is installed, JAX would look for a GPU in every process.
.cuda/.ready: .venv/.test
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .cuda nvidia-cuda-nvcc-cu12 \
	  $$($(BIN)/python -c "from jaxlib import __version__ as v; print(f'jax-cuda12-plugin=={v} jax-cuda12-pjrt=={v}')")
	touch $@

clean:
	rm -rf .venv .venv-tfds .venv-page .venv-docs .cuda build *.egg-info .pytest_cache .mypy_cache .ruff_cache
