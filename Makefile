# Each target sets up what it needs in .venv; nothing outside this folder is written.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup run test test-slow test-docker lint bench schema docs clean

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"kdpipe needs Python 3.11 to 3.13, found {v[0]}.{v[1]}; say which: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

run: setup
	$(BIN)/kdpipe run profiles/resnet_to_mobilenet.yaml

# Two at once: most tests wait for processes of their own. A file's tests share what they prepare.
test: setup
	$(BIN)/python -m pytest -m 'not slow and not gpu' --numprocesses 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m 'slow and not gpu' --ignore tests/docker

test-docker: setup
	$(BIN)/python -m pytest -m slow tests/docker

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	for program in benchmarks/bench_*.py; do $(BIN)/python $$program || exit 1; done

schema: setup
	$(BIN)/kdpipe schema > kdpipe.schema.json

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
