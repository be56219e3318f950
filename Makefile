# What people do with PocketGrid, one word each. Every target sets up what it needs.
PYTHON ?= python3
RUN := .venv/bin/python
# onnxruntime reports to its maker unless told not to before it is imported.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help setup demo demo-trust test chaos peers bench bench-trust lint types generate verify lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: ## Make .venv with everything needed, pinned and checked by hash
	@PYTHON=$(PYTHON) hack/setup.sh

demo: setup ## Real API server, operator and four agents embed 3,000 sentences while things are killed
	@$(RUN) -m hack.demo

demo-trust: setup ## Six strangers' devices, two of them liars, and a job without a wrong row
	@$(RUN) -m hack.demo_trust

test: setup ## All tests, on a real API server and with real agents
	@$(RUN) -m pytest

chaos: setup ## Random faults by the hundred, each with a seed; every history is checked
	@$(RUN) -m tests.chaos

peers: ## Install what `make bench` can compare with: Ray Data and Dask
	@PYTHON=$(PYTHON) hack/setup.sh peers

bench: setup ## Measure against the bare limit and write docs/benchmarks.md
	@$(RUN) -m hack.bench

bench-trust: setup ## Verification in simulation: liars of five kinds among a thousand devices
	@$(RUN) -m hack.bench_trust

lint: setup ## Style, arrows between rooms, protobuf, shell
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@.venv/bin/lint-imports --no-logo
	@.venv/bin/buf lint

types: setup ## mypy --strict
	@$(RUN) -m mypy

generate: setup ## Write protobuf code and CRDs from their sources
	@$(RUN) hack/gen_protos.py
	@$(RUN) hack/gen_crds.py

verify: generate lint types test ## All that must hold before a change is proposed
	@git diff --exit-code -- crds operator/pocketgrid/wire || (echo "generated files were stale; commit them" >&2; exit 1)

lock: setup ## Pin dependencies anew (needs an index)
	@hack/lock.sh --upgrade

clean: ## Remove what the tools leave behind, not the cache of API servers and data
	@rm -rf .venv .venv-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
