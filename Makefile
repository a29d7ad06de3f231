# Each target sets up what it needs in .venv; nothing outside this folder is written.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
READY := $(VENV)/.ready
READY_DOCS := $(VENV)/.ready-docs

.PHONY: setup run test test-slow test-docker lint bench schema docs clean

setup: $(READY)

$(READY): pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[dev]'
	touch $(READY)

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"kdpipe needs Python 3.11 to 3.13, found {v[0]}.{v[1]}; say which: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)

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
	$(BIN)/python -m pipeline.profile.reference

# The site in site/. It needs the tools of the extra `docs` and no more: the API pages are read from the sources, not imported.
docs: $(READY_DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo 'wrote site/index.html; to read it with its search: $(BIN)/python -m http.server --directory site'

$(READY_DOCS): pyproject.toml | $(BIN)/python
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(VENV)/docs.txt
	$(PIP) --requirement $(VENV)/docs.txt
	touch $(READY_DOCS)

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache
