# make demo   sets up the environment and runs the whole loop on generated phantoms
# make test   sets up the environment and runs the tests
# make check  formatting, linting and types
# make clean  removes the environment and the demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A pinned list of versions to install from, e.g. make test PINS=requirements-ci.txt; without it the ranges of pyproject.toml.
PINS ?=
CONSTRAINT := $(if $(PINS),--constraint $(PINS))

# Tests run on every core, each worker with one thread; WORKERS= runs them one after another. PYTEST: more options, e.g. --durations=40.
WORKERS ?= -n logical --maxprocesses 8 --dist loadgroup
PYTEST ?=

.PHONY: demo test check clean

demo: $(VENV)/ready
	$(BIN)/radloop demo --out demo

test: $(VENV)/ready
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST)

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# uv is the faster installer; where it does not reach the package index that pip is configured for, pip does it. Both compile: where Python is
# told to write no bytecode (PYTHONDONTWRITEBYTECODE, usual in containers), each process would compile torch anew, for 20 seconds.
$(VENV)/ready: pyproject.toml $(PINS)
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "radloop needs Python 3.11 or newer; make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing radloop and what it needs (some GB with the CUDA build of torch) ..."
	$(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(CONSTRAINT) --editable '.[dev]' \
	  || $(BIN)/python -m pip install --quiet $(CONSTRAINT) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist
