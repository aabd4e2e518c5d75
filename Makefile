# make demo | make test: each does its own set-up. Neither downloads torch.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-all lint bench system-tools clean

help: ## What there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: .venv/.demo ## Run the node on a synthetic study, or on your own: make demo ARGS="file-or-folder"
	$(BIN)/pacs-node demo $(ARGS)

test: .venv/.test system-tools lint ## Everything but the torch side
	$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not torch" $(ARGS)

test-fast: .venv/.test lint ## The everyday subset, under two minutes
	$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not torch and not slow" $(ARGS)

test-all: .venv/.test-all system-tools lint ## make test and the torch side (export/); what CI runs
	$(PYTEST) -n $(WORKERS) --dist loadgroup $(ARGS)

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.test ## Print the benchmark tables
	$(BIN)/python -m tests.benchmarks $(ARGS)

system-tools: ## Install what the tests run against (DCMTK, dicom3tools, Orthanc …), where apt may
	@tests/system-tools.sh

# A stamp per set of extras, each of which holds the one before it, so that no target takes packages away.
.venv/.base:
	@tests/make-venv.sh "$(PYTHON)"
	@touch $@

.venv/.demo: .venv/.base pyproject.toml
	$(BIN)/python -m pip install -q -e '.[cpu]'
	@touch $@

.venv/.test: .venv/.demo pyproject.toml
	$(BIN)/python -m pip install -q -e '.[cpu,dev]'
	@touch $@

.venv/.test-all: .venv/.test pyproject.toml
	$(BIN)/python -m pip install -q -e '.[cpu,dev,export,oracles]'
	@touch $@

clean: ## Remove what make made
	rm -rf .venv demo-out .pytest_cache .mypy_cache .ruff_cache
