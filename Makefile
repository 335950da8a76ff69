# Two commands do everything on a fresh machine (Python 3.11, make, internet): `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
UV_VERSION := 0.13.8
DEMO_HOME := $(CURDIR)/.em/demo
DEV_HOME := $(CURDIR)/.em/dev

PEERS := .venv-peers
PEERS_READY := $(PEERS)/.ready
BENCH :=

.PHONY: help setup demo test bench dev check lint types layers format lock clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## Make the virtual environment from the lock

$(READY): requirements.lock pyproject.toml sdk/python/pyproject.toml hatch_build.py em_pipeline/volumes/kernels.c
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python -e sdk/python -e .
	@touch $(READY)

demo: setup ## Ingest demo datasets end to end on embedded services, and read a block back
	EM_HOME=$(DEMO_HOME) $(BIN)/python -m em_pipeline.demo

test: check ## Run every check and every test that can run on this machine
	$(BIN)/python -m pytest

bench: setup $(PEERS_READY) ## Compare the rechunk with its peers; BENCH="--size-mib 128" for a quick look
	$(BIN)/python benchmarks/rechunk.py $(BENCH)

$(PEERS_READY): benchmarks/peers/requirements.txt | setup
	$(PYTHON) -m venv --clear $(PEERS)
	$(BIN)/uv pip install --quiet --compile-bytecode --no-deps --python $(PEERS)/bin/python \
	  -r benchmarks/peers/requirements.txt
	@touch $(PEERS_READY)

check: lint types layers ## Lint, types and import layers

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

dev: setup ## Dagster UI and daemon, and the sidecar, until interrupted
	EM_HOME=$(DEV_HOME) $(BIN)/em dev

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: setup ## Resolve the dependencies again; the lock records hashes and no addresses
	$(BIN)/uv lock --upgrade
	$(BIN)/uv export --quiet --all-groups --all-extras --no-emit-project --no-emit-package em-client \
	  --format requirements-txt --no-header --no-annotate --output-file requirements.lock

clean: ## Remove the virtual environments and what demo, dev and bench made
	rm -rf .venv $(PEERS) .em
