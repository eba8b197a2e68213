# `make help` lists what can be done. Every target sets up what it needs, and is quick the second time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

MNT ?= /mnt/aspen
VENV := .venv
BIN := $(VENV)/bin
# How long `make fuzz` takes for each target, or if given, for all of them together.
SECONDS ?= 60
TOTAL ?=
# How many histories `make history` records and checks.
SEEDS ?= 200
# What `make test` hands to pytest, `make bench` to the benchmark, `make mount` to aspenfs.
ARGS ?=

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

# --- set-up ----------------------------------------------------------------------------------------

EXTENSION := setup.py $(wildcard aspenfs/fuse_extension/*.[ch])

$(VENV)/.run: requirements.lock pyproject.toml $(EXTENSION) scripts/find-python scripts/install-system-packages
	@scripts/install-system-packages run
	@echo "installing into $(VENV)"
	@[[ -x $(BIN)/python ]] || "$$(scripts/find-python)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	@scripts/install-system-packages test
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-dev.lock
	@touch $@

$(VENV)/.bench: requirements-bench.lock $(VENV)/.run
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-bench.lock
	@touch $@

$(VENV)/.fuzz: requirements-fuzz.lock $(VENV)/.run
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-fuzz.lock
	@touch $@

$(VENV)/.posix: $(VENV)/.run
	@scripts/install-system-packages posix
	@touch $@

# --- use -------------------------------------------------------------------------------------------

.PHONY: mount
mount: $(VENV)/.run ## Mount the filesystem at MNT=/mnt/aspen
	@mkdir -p "$(MNT)" 2>/dev/null || true # aspenfs says what is wrong with it, and the cure
	@$(BIN)/aspenfs mount "$(MNT)" $(ARGS)

.PHONY: umount
umount: $(VENV)/.run ## Unmount MNT=/mnt/aspen
	@$(BIN)/aspenfs umount "$(MNT)" $(ARGS)

# --- verify ----------------------------------------------------------------------------------------

.PHONY: check
check: lint types imports docs ## Check format, lint, types, layers and documents; write nothing

.PHONY: lint
lint: $(VENV)/.dev ## Check format and lint
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .

.PHONY: types
types: $(VENV)/.dev ## Check the types
	@$(BIN)/mypy

.PHONY: imports
imports: $(VENV)/.dev ## Check that each module imports lower layers only
	@$(BIN)/lint-imports --no-logo

.PHONY: docs
docs: $(VENV)/.dev ## Check the documents: links, anchors, and that none is unreachable
	@$(BIN)/python scripts/check_docs.py

.PHONY: test
test: $(VENV)/.dev ## Run all tests, and check their coverage; ARGS="-k rename" runs some
	@scripts/test $(ARGS)

.PHONY: test-fast
test-fast: $(VENV)/.dev ## Run the tests that need neither a mount nor patience
	@$(BIN)/pytest -m "not slow and not mount" $(ARGS)

.PHONY: verify
verify: check test ## All that a change must pass

.PHONY: fuzz
fuzz: $(VENV)/.fuzz ## Fuzz all that reads foreign bytes, SECONDS=60 each or TOTAL=600; ARGS="request" only one
	@$(BIN)/python -m fuzz $(if $(TOTAL),--total "$(TOTAL)",--seconds "$(SECONDS)") $(ARGS)

.PHONY: history
history: $(VENV)/.dev ## Check SEEDS=200 histories of three mounts used at once
	@$(BIN)/python -m tests.history --seeds "$(SEEDS)" $(ARGS)

.PHONY: posix
posix: $(VENV)/.posix ## Run the POSIX suite pjdfstest on a mount: SUITE=its checkout, as root
	@scripts/posix "$(SUITE)"

.PHONY: bench
bench: $(VENV)/.bench ## Measure against peers; ARGS="--help" shows the options
	@$(BIN)/python -m bench $(ARGS)

.PHONY: bench-net
bench-net: $(VENV)/.run ## Measure each layer of the network beside the one below it
	@$(BIN)/python -m bench.net $(ARGS)

.PHONY: bench-coherence
bench-coherence: $(VENV)/.run ## Measure how soon one mount shows what another did; ARGS="--help"
	@$(BIN)/python -m bench.coherence $(ARGS)

# --- change ----------------------------------------------------------------------------------------

.PHONY: fmt
fmt: $(VENV)/.dev ## Format, and fix what the linter can fix
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

UV := .cache/uv/bin/uv
COMPILE := $(UV) pip compile pyproject.toml --quiet --no-config --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate

$(UV):
	@"$$(scripts/find-python)" -m venv .cache/uv
	@.cache/uv/bin/pip install --quiet uv

.PHONY: lock
lock: $(UV) ## Bring the locks up to date with pyproject.toml; ARGS="--upgrade" takes newer versions
	@$(COMPILE) $(ARGS) --output-file requirements.lock
	@$(COMPILE) $(ARGS) --extra bench --constraint requirements.lock --output-file requirements-bench.lock
	@$(COMPILE) $(ARGS) --extra fuzz --constraint requirements.lock --output-file requirements-fuzz.lock
	@$(COMPILE) $(ARGS) --extra dev --constraint requirements.lock --output-file requirements-dev.lock
