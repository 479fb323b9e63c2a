# Everything a developer does with procession; `make help` lists it.
#
# Needed: Rust (cargo), Python 3.11 or newer with venv, make. The rest is installed into .venv.

# The interpreter of .venv.
PYTHON ?= python3
# Further interpreters to test with, separated by spaces; those that are found, if empty (see tools/interpreters.py).
PYTHONS ?=
# The folder that holds tutorials/ and conformance/; what needs them is left out without it.
SHARED ?= ../shared
# A folder with test_concurrent_futures, for `make conformance` on interpreters that lack it.
TESTS_FROM ?=
# Passed on to the program that a target runs: make test-python ARGS="-k queue", make bench ARGS=--quick
ARGS ?=

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check --quiet
NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
SOURCES := Cargo.toml $(wildcard Cargo.lock) pyproject.toml \
  $(shell find crates -name '*.rs' -o -name Cargo.toml)

# One interpreter for every build, so that cargo doesn't compile the bindings anew for each caller.
export PYO3_PYTHON := $(BIN)/python
export VIRTUAL_ENV := $(VENV)
export PYTHONS SHARED TESTS_FROM

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

.PHONY: help
help:
	@sed -n 's/^## /  make /p' $(firstword $(MAKEFILE_LIST))

## run            build, then run the main job on the standard package and on procession, and compare
.PHONY: run
run: compiled
	$(BIN)/python examples/compare.py $(ARGS)

## tour           see the Rust face at work: what is there, what happens when processes die, how long things take
.PHONY: tour
tour:
	cargo run --release --package procession --example tour

## test           lint, and all tests: Rust, loom, tutorials, a part of conformance, Python on each version
.PHONY: test
test: lint test-rust test-loom tutorials conformance-part test-versions

## bench          side-by-side speed of the standard package and procession (ARGS="--quick", "--only pool")
.PHONY: bench
bench: compiled
	$(BIN)/python benches/side_by_side.py $(ARGS)

## bench-peers    speed beside loky, pebble, mpire, joblib, ProcessPoolExecutor and faster-fifo (ARGS="--quick", "--only queue")
## memory-table   the memory that a large array takes as the argument of one task, beside theirs (ARGS="--megabytes 100")
.PHONY: bench-peers memory-table
bench-peers: compiled target/peers-venv/.built
	$(BIN)/python benches/peers.py --python target/peers-venv/bin/python $(ARGS)
memory-table: compiled target/peers-venv/.built
	$(BIN)/python tools/memory_table.py --python target/peers-venv/bin/python $(ARGS)
target/peers-venv/.built: benches/peers-requirements.txt $(VENV)/.tools
	$(BIN)/python -m venv --clear target/peers-venv
	target/peers-venv/bin/python $(PIP) install -r benches/peers-requirements.txt
	@touch $@

## bench-rust     side-by-side speed of procession and other crates for Rust programs (ARGS="--quick", "--only u64", "--check")
.PHONY: bench-rust
bench-rust:
	cargo build --quiet --release --manifest-path benches/rivals/Cargo.toml --target-dir target/rivals
	target/rivals/release/rivals $(ARGS)

## develop        build the extension in release mode into .venv (edits of Python files need no new build)
.PHONY: venv develop
venv: $(VENV)/.tools
develop: $(VENV)/.developed

$(VENV)/.tools: requirements-dev.txt requirements-test.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null || { echo \
	  "procession needs Python 3.11 or newer, and '$(PYTHON)' is not. Name one: make PYTHON=/path/to/python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' </dev/null || { echo \
	  "'$(PYTHON)' cannot make virtual environments (on Debian: apt install python3-venv)" >&2; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(PIP) install -r requirements-dev.txt
	@touch $@

$(VENV)/.developed: $(VENV)/.tools $(SOURCES)
	$(BIN)/maturin develop --release --quiet
	@touch $@

# As pip does when it installs a package. Without, where PYTHONDONTWRITEBYTECODE is set, each spawned child compiles our
# modules anew, and those of the standard package not; nor are the modules of the benchmark a part of what is measured.
.PHONY: compiled
compiled: develop
	@$(BIN)/python -m compileall -q python/procession benches

## lint           rustfmt, clippy, rustdoc, ruff, mypy, and the stubs against the extension
.PHONY: lint
lint: develop
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	cargo clippy --package procession -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --workspace --all-features
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest --allowlist tests/stubtest-allowlist.txt procession._core

## format         put Rust and Python into the form that lint asks for
.PHONY: format
format: venv
	cargo fmt --all
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

## test-rust      Rust tests and doctests, and the scenarios of locks and queues over the core and both faces
.PHONY: test-rust
test-rust: export PROCESSION_CONFORMANCE_PYTHON = needed
test-rust: develop
	$(if $(NEXTEST),cargo nextest run,cargo test --lib --bins --tests --examples) --all-features $(ARGS)
	cargo test --doc --all-features

## test-loom      the algorithms on atomics under every order of events (loom)
.PHONY: test-loom
test-loom: venv
	RUSTFLAGS="--cfg loom" CARGO_PROFILE_DEV_OPT_LEVEL=2 \
	  cargo test --package procession-core --lib --target-dir target/loom models $(ARGS)

## test-python    the Python tests on .venv alone
.PHONY: test-python
test-python: develop
	$(BIN)/python -m pytest -m "not tutorials" $(ARGS)

## lives          a pool that starts a new worker for each of 100,000 tasks (in the tests: 2,000)
.PHONY: lives
LIVES ?= 100000
lives: develop
	PROCESSION_LIVES=$(LIVES) $(BIN)/python -m pytest -o faulthandler_timeout=0 --durations=1 \
	  tests/deaths/test_each_task_its_own_worker.py $(ARGS)

## deaths-table   what becomes of programs when processes die: the standard package, its peers, procession (docs/reliability.md)
##                (ARGS="--only pool", "--peer pebble", "--show"; installs the peers into target/deaths-venv)
.PHONY: deaths-table
deaths-table: wheel
	$(BIN)/python tools/deaths_table.py $(ARGS)

## tutorials      the tutorial programs, unmodified, under each start method
.PHONY: tutorials
tutorials: develop
	$(BIN)/python -m pytest -m tutorials $(ARGS)

## conformance    the standard package's own tests, on .venv and each further Python version (TESTS_FROM: see CONTRIBUTING.md)
## conformance-part    a quick part of them, on .venv
.PHONY: conformance conformance-part
conformance: develop
	$(BIN)/python tools/conformance.py $(ARGS)
conformance-part: develop
	$(BIN)/python tools/conformance.py --part $(ARGS)

## third-party    libraries that use multiprocessing, on the standard package and on procession (see docs/compatibility.md)
##                (ARGS="--only joblib", "--beside", "--times"; installs them into target/third-party)
.PHONY: third-party
third-party: wheel
	$(BIN)/python tools/third_party.py $(ARGS)

## test-versions  the Python tests on .venv and on each further Python version that is found, all at once
.PHONY: test-versions wheel
test-versions: wheel
	@tools/test-versions

# abi3: one wheel serves every version.
wheel: target/wheels/.built
target/wheels/.built: $(VENV)/.developed $(shell find python -name '*.py' -o -name '*.pyi')
	rm -rf target/wheels
	$(BIN)/maturin build --release --quiet --out target/wheels
	@touch $@

## sanitize       the Rust tests under AddressSanitizer and ThreadSanitizer
.PHONY: sanitize
sanitize:
	tools/sanitize address $(ARGS)
	tools/sanitize thread $(ARGS)

## soak           random work and random deaths for SECONDS: every task accounted for, nothing left (SEED=n; ARGS="--only pool")
.PHONY: soak
soak: compiled
	$(BIN)/python tools/soak.py --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

## fuzz           what peers may send, at random, with AddressSanitizer, each target so many SECONDS (fuzz/; ARGS="handshake python")
.PHONY: fuzz
SECONDS ?= 600
CARGO_FUZZ := $(shell command -v cargo-fuzz || echo target/tools/bin/cargo-fuzz)
fuzz: develop $(CARGO_FUZZ)
	tools/fuzz $(SECONDS) $(ARGS)
target/tools/bin/cargo-fuzz:
	cargo install --locked --quiet --root target/tools cargo-fuzz

## msrv           check with the oldest Rust that Cargo.toml names (rustup gets it)
.PHONY: msrv
msrv: venv
	rustup run --install $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) cargo check --target-dir target/msrv \
	  --workspace --all-features

## doc            the documentation of the Rust crates, into target/doc; warnings are errors
.PHONY: doc
doc: venv
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace --all-features $(ARGS)

## deny           licences, sources and bans of all Rust dependencies (cargo-deny, installed into target/tools if it is missing)
## deny-advisories    known vulnerabilities of them (fetches a database)
.PHONY: deny deny-advisories
DENY := $(shell command -v cargo-deny || echo target/tools/bin/cargo-deny)
deny: $(DENY)
	$(DENY) --all-features check bans licenses sources
deny-advisories: $(DENY)
	$(DENY) --all-features check advisories
target/tools/bin/cargo-deny:
	cargo install --locked --quiet --root target/tools cargo-deny

## publish-check  what `cargo publish` would do for each crate meant for the registry, short of uploading it
.PHONY: publish-check
publish-check:
	cargo publish --dry-run --workspace --target-dir target/publish $(ARGS)

## clean          remove all that was built, .venv included
.PHONY: clean
clean:
	rm -rf target dist .venv .venv-* .pytest_cache .mypy_cache .ruff_cache python/procession/_core*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
