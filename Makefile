# Everything a developer does with procession. `make help` lists it.
#
# Needed: Rust (cargo), Python 3.11 or newer with venv, make. The rest is installed into .venv from PyPI.
# Variables: PYTHON (the interpreter of .venv; python3 on PATH), PYTHONS (further interpreters to test with;
# without it those that are found), SHARED (the folder of the tutorials and of the conformance tool).

PYTHON ?= python3
SHARED ?= ../shared
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# One interpreter for every build, so that cargo does not compile the bindings anew for each caller.
export PYO3_PYTHON := $(BIN)/python
export VIRTUAL_ENV := $(VENV)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

## help: this list
.PHONY: help
help:
	@sed -n 's/^## /  make /p' $(firstword $(MAKEFILE_LIST))

## venv: the project's own virtual environment, .venv, with the tools
.PHONY: venv
venv: $(VENV)/.tools

$(VENV)/.tools: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null || \
	  { echo "procession needs Python 3.11 or newer; '$(PYTHON)' is not. Name one: make PYTHON=/path/to/python3.13 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' </dev/null || \
	  { echo "'$(PYTHON)' cannot make virtual environments (on Debian: apt install python3-venv)" >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -c '' || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -r requirements-dev.txt
	@touch $@

## develop: build the extension in release mode into .venv (edits of Python files need no new build)
.PHONY: develop
develop: $(VENV)/.developed

RUST_SOURCES := Cargo.toml $(wildcard Cargo.lock) pyproject.toml \
  $(shell find crates -name '*.rs' -o -name Cargo.toml)

$(VENV)/.developed: $(VENV)/.tools $(RUST_SOURCES)
	$(BIN)/maturin develop --release --quiet
	@touch $@

## test-python: the Python tests (ARGS="-k queue" picks some)
.PHONY: test-python
test-python: develop
	$(BIN)/python -m pytest $(ARGS)

## clean: remove what was built, .venv included
.PHONY: clean
clean:
	rm -rf target dist .venv .venv-* .pytest_cache .mypy_cache .ruff_cache python/procession/_core*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
