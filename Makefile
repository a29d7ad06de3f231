# Each target sets up what it needs in .venv; nothing outside this folder is written.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
READY := $(VENV)/.ready
READY_RUN := $(VENV)/.ready-run
READY_DOCS := $(VENV)/.ready-docs
# The versions beside the one in .venv, for `make test-pythons`.
PYTHONS := 3.12 3.13

.PHONY: setup run test test-fast test-slow test-docker test-pythons lint bench schema docs clean

setup: $(READY)

$(READY): pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[dev]'
	touch $(READY) $(READY_RUN)

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"kdpipe needs Python 3.11 to 3.13, found {v[0]}.{v[1]}; say which: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)

# What the targets of the example profile need, without the tools of `dev`.
$(READY_RUN): pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[openvino]'
	touch $(READY_RUN)

run: $(READY_RUN)
	$(BIN)/kdpipe run profiles/resnet_to_mobilenet.yaml

# Two at once: most tests wait for processes of their own. A file's tests share what they prepare.
test: setup
	$(BIN)/python -m pytest -m 'not slow and not gpu' --numprocesses 2 --dist loadfile

# The unit tests: those that start no other process and train or convert no network. One that starts a process
# without the marker fails (tests/processes.py).
test-fast: setup
	$(BIN)/python -m pytest -m 'not slow and not gpu and not process and not long' --no-processes --numprocesses 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m 'slow and not gpu' --ignore tests/docker

test-docker: setup
	$(BIN)/python -m pytest -m slow tests/docker

# The fast tests on other Pythons, each in a .venv-VERSION of its own. A pyenv version need not be activated.
test-pythons:
	@tested= ; skipped= ; failed= ; \
	for version in $(PYTHONS); do \
	  python= ; \
	  for candidate in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python; do \
	    if "$$candidate" -c '' >/dev/null 2>&1; then python=$$candidate; fi; \
	  done; \
	  if [ -z "$$python" ]; then skipped="$$skipped $$version"; continue; fi; \
	  echo "== Python $$version: $$python"; \
	  if $(MAKE) --no-print-directory VENV=.venv-$$version PYTHON="$$python" test-fast; \
	  then tested="$$tested $$version"; else failed="$$failed $$version"; fi; \
	done; \
	echo "== passed:$${tested:- none}; failed:$${failed:- none}; skipped, not installed:$${skipped:- none}"; \
	test -z "$$failed"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	for program in benchmarks/bench_*.py; do $(BIN)/python $$program || exit 1; done

# Every generated file: kdpipe.schema.json and docs/reference/profile.md.
schema: $(READY_RUN)
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
	rm -rf $(VENV) $(PYTHONS:%=.venv-%) site .pytest_cache .mypy_cache .ruff_cache
