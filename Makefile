# Every task of the project, one line of help each: `make help`.

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv/bin

# KEEP=1 leaves the demo's lab running; TESTS narrows `make test`, such as TESTS=tests/bpf.
# Tests wait more than they compute, so two files run at a time, in the order of the tree.
KEEP ?=
TESTS ?=
TOGETHER ?= -n 2 --dist loadfile --no-loadscope-reorder
FUZZ ?=

.PHONY: help setup demo test fuzz compat bench crds lint type fmt clean

help: ## List the tasks
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 12

setup: ## Install what is missing: Debian packages, kernel headers, the locked Python environment
	@scripts/setup

demo: setup ## Three nodes, two namespaces, a policy, and the flows it lets through and refuses (KEEP=1)
	@KEEP=$(KEEP) $(VENV)/python examples/demo.py

test: setup ## Run every test (as root: real eBPF, namespaces and etcd)
	@$(VENV)/python -m pytest $(TOGETHER) $(TESTS)

fuzz: setup ## Compare resolver, oracle and kernel on random policies; play random changes of services; select flows (minutes)
	@$(VENV)/python -m tests.fuzz $(FUZZ)

compat: setup ## Compare our hubble with another one, HUBBLE=path, and our relay with one, RELAY=path (minutes)
	@$(VENV)/python -m tests.compat $(HUBBLE) $(if $(RELAY),--relay $(RELAY))

bench: ## Measure against peers in one run; prints a table and writes build/bench.json
	@scripts/setup bench
	@$(VENV)/python -m tests.bench

crds: setup ## Make k8s/crds from the models
	@$(VENV)/python -m cilium_core.crds k8s/crds

lint: setup ## Check style, imports and the C formatting
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/lint-imports
	@clang-format --dry-run --Werror bpf/*.c bpf/lib/*.h

type: setup ## Check types
	@$(VENV)/mypy

fmt: setup ## Format Python and C
	@$(VENV)/ruff check --fix-only .
	@$(VENV)/ruff format .
	@clang-format -i bpf/*.c bpf/lib/*.h

clean: ## Remove what the build made (not what the system's package manager installed)
	@rm -rf build .venv lib/api/src .mypy_cache .pytest_cache .ruff_cache .hypothesis
