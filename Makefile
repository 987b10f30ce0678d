# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo install test check soak bench clean

demo: .venv/.runtime
	$(BIN)/clipsep demo --out runs/demo

test: .venv/.test
	$(BIN)/pytest -n auto -m "not soak"

install: .venv/.test

check: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto -m "not slow and not soak"

soak: .venv/.test
	$(BIN)/pytest -m soak

bench: .venv/.bench
	$(BIN)/python -m benchmarks

.venv/.runtime: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.test: .venv/.runtime
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

.venv/.bench: .venv/.test
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
