# The two commands: `make demo` runs the main job, `make test` checks everything. Each sets itself up.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
CHECKOV_VENV ?= .venv-checkov
# The first interpreter that is new enough; asked for its version because a shim may stand in for one that is missing.
PYTHON ?= $(firstword $(foreach candidate,python3.13 python3.12 python3.11 python3 python,$(shell $(candidate) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(candidate))))

# What `sam build` makes the artifact for, unless its environment says otherwise: ARCHITECTURE=x86_64 sam build ...
# tests/template holds these equal to template.yaml's defaults.
LAMBDA_PYTHON := 3.13
ARCHITECTURE ?= arm64
PLATFORM_arm64 := aarch64-manylinux_2_28
PLATFORM_x86_64 := x86_64-manylinux_2_28
LAMBDA_PLATFORM = $(or $(PLATFORM_$(ARCHITECTURE)),$(error ARCHITECTURE: expected arm64 or x86_64, got $(ARCHITECTURE)))

DEMO ?=

.PHONY: help
help: ## Print this help
	@echo "make demo           a flood of orders becomes rows, on this machine (DEMO='--events 5000 --seed 7' varies it)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / && $$1 != "demo" { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.local-installed ## Run the demo
	@$(BIN)/spillway demo $(DEMO)

.PHONY: up
up: $(VENV)/.local-installed ## Keep the local stack running in the foreground
	@$(BIN)/spillway up

.PHONY: test
test: lint unit template integration stack chaos-short ## Run every check and test

.PHONY: lint
lint: $(VENV)/.dev-installed ## Check style, types, generated files, and that no SQL pins
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/spillway generate --check
	$(BIN)/spillway pins workers spillway

PYTEST = $(BIN)/python -m pytest $(PYTEST_ARGS)
# Several at a time, each with servers of its own; the slow ones wait more than they work, so more of them than cores.
PARALLEL ?= -n 2 --dist worksteal
WAITING ?= -n 3 --dist worksteal

.PHONY: unit
unit: $(VENV)/.dev-installed ## Run the tests without I/O
	$(PYTEST) $(PARALLEL) tests/unit

.PHONY: template
template: $(VENV)/.dev-installed $(CHECKOV_VENV)/.installed ## Validate, lint and assert template.yaml, raw and translated
	$(PYTEST) $(PARALLEL) tests/template tests/deploy/test_derived.py

.PHONY: integration
integration: $(VENV)/.dev-installed ## Run the tests on PostgreSQL
	$(PYTEST) $(WAITING) tests/integration

.PHONY: stack
stack: $(VENV)/.dev-installed ## Run the tests on the whole local stack
	$(PYTEST) $(WAITING) tests/stack

.PHONY: chaos-short
chaos-short: $(VENV)/.dev-installed ## Run the short part of the chaos suite, the same faults every time (about a minute)
	$(PYTEST) $(PARALLEL) tests/chaos

# DOCKER=if-possible, for CI: installs Docker where it is missing and that is possible, and skips where it is not.
DOCKER ?= required
.PHONY: test-docker
test-docker: $(VENV)/.dev-installed ## Run every consumer with every sample by `sam local invoke`, in containers (4 minutes; needs Docker)
	$(BIN)/python -m tests.docker --docker $(DOCKER) $(PYTEST_ARGS)

.PHONY: test-deploy
test-deploy: $(VENV)/.dev-installed ## Deploy the fleet to ministack with the SAM CLI: messages in, rows and dead letters out (2 minutes)
	$(PYTEST) tests/deploy

CHAOS ?= --runs 200 --parallel 4 --minutes 30

.PHONY: chaos
chaos: $(VENV)/.dev-installed ## Run the chaos suite (half an hour; CHAOS='--seed 7 --run 12' makes one run again)
	$(BIN)/python -m tests.chaos $(CHAOS)

CHAOS_REDRIVE ?= --seed 1121 --kills 100

.PHONY: chaos-redrive
chaos-redrive: $(VENV)/.dev-installed ## Kill a redrive at 100 random moments: nothing may be lost or take effect twice (a minute)
	$(BIN)/python -m tests.chaos.redrive_chaos $(CHAOS_REDRIVE)

.PHONY: chaos-mutants
chaos-mutants: $(VENV)/.dev-installed ## Take the safeguards out one by one: the chaos suite must notice (10 minutes)
	$(BIN)/python -m tests.chaos.mutants

.PHONY: bench
bench: $(VENV)/.dev-installed ## Run the benchmarks (about 40 minutes)
	$(BIN)/python -m bench.write_path
	$(BIN)/python -m bench.cold_start
	$(BIN)/python -m bench.stack
	$(BIN)/python -m bench.poison
	$(BIN)/python -m bench.inventory
	$(BIN)/python -m bench.audit
	$(BIN)/python -m bench.saturation
	$(BIN)/python -m bench.recovery
	$(BIN)/python -m bench.redrive
	$(BIN)/python -m bench.rdsproxy

.PHONY: generate
generate: $(VENV)/.dev-installed ## Write the schemas, the AsyncAPI document and the samples anew
	$(BIN)/spillway generate

.PHONY: format
format: $(VENV)/.dev-installed ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: lock
lock: $(VENV)/.dev-installed ## Pin every dependency anew, with hashes
	$(BIN)/uv pip compile $(COMPILE) pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile $(COMPILE) pyproject.toml --group local -c requirements.txt -o requirements-local.txt
	$(BIN)/uv pip compile $(COMPILE) pyproject.toml --group dev -c requirements-local.txt -o requirements-dev.txt
	$(BIN)/uv pip compile $(COMPILE) requirements-checkov.in -o requirements-checkov.txt

COMPILE = --system-certs --quiet --upgrade --universal --generate-hashes --no-annotate --no-header --python-version 3.11

.PHONY: clean
clean: ## Remove what was built and installed here
	rm -rf $(VENV) $(CHECKOV_VENV) .aws-sam .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ── set-up ───────────────────────────────────────────────────────────────────────────────────────────────────────────
# A mark is written only after everything before it succeeded, so an interrupted set-up is done again.
$(VENV)/.local-installed: requirements-local.txt pyproject.toml
	@$(call install,requirements-local.txt)
	@touch $@

$(VENV)/.dev-installed: requirements-dev.txt pyproject.toml
	@$(call install,requirements-dev.txt)
	@touch $@ $(VENV)/.local-installed

# By uv, which takes seconds where pip takes half a minute.
$(CHECKOV_VENV)/.installed: requirements-checkov.txt | $(VENV)/.dev-installed
	@echo "Setting up $(CHECKOV_VENV) from requirements-checkov.txt ..."
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CHECKOV_VENV)
	@$(BIN)/uv pip install --system-certs --quiet --compile-bytecode --python $(CHECKOV_VENV)/bin/python --require-hashes --no-deps -r requirements-checkov.txt
	@touch $@

define install
	test -n "$(PYTHON)" || { echo "Spillway needs Python 3.11 or newer, and found none. Install it, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	echo "Setting up $(VENV) with $$($(PYTHON) --version) from $(1) ..."; \
	test -x $(BIN)/python -a -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { echo "Python's venv module does not work here; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	$(BIN)/pip install --quiet --disable-pip-version-check --no-warn-script-location --require-hashes --no-deps -r $(1); \
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
endef

# ── the Lambda artifact ──────────────────────────────────────────────────────────────────────────────────────────────
# Called by `sam build` (BuildMethod: makefile) with ARTIFACTS_DIR set. uv picks wheels for Lambda's Python and processor
# whatever runs here; boto3 is in the managed runtime and stays out.
# Out of it go what no function reads, so that editing a README deploys nothing, and what the building machine leaves in
# it, so that everybody's artifact is the same: scripts begin with their interpreter's path, RECORD hashes them, and modes
# follow the umask.
.PHONY: build-%
build-%: $(VENV)/.dev-installed
	@$(MAKE) artifact

.PHONY: artifact
artifact: $(VENV)/.dev-installed
	@test -n "$(ARTIFACTS_DIR)" || { echo "ARTIFACTS_DIR is not set: run 'sam build', or name a folder" >&2; exit 1; }
	$(BIN)/uv pip install --system-certs --quiet --target "$(ARTIFACTS_DIR)" --python-platform $(LAMBDA_PLATFORM) --python-version $(LAMBDA_PYTHON) --only-binary :all: --require-hashes --no-deps -r requirements.txt
	cp -R workers "$(ARTIFACTS_DIR)/"
	find "$(ARTIFACTS_DIR)" \( -name __pycache__ -o -name tests \) -type d -prune -exec rm -rf {} +
	find "$(ARTIFACTS_DIR)" \( -name '*.pyc' -o -name '*.pyi' -o -name py.typed -o -path '*/workers/*.md' \) -type f -delete
	rm -rf "$(ARTIFACTS_DIR)/bin" "$(ARTIFACTS_DIR)/.lock" "$(ARTIFACTS_DIR)"/*.dist-info/{INSTALLER,RECORD,REQUESTED,direct_url.json}
	chmod -R u=rwX,go=rX "$(ARTIFACTS_DIR)"
