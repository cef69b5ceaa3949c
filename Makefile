# Tally: every command of the project. `make` alone lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

PYTHON    ?= python3
VENV      := .venv
BIN       := $(VENV)/bin
STAMP     := $(VENV)/.ready
DATA_DIR  ?= .tally/data
REPLICAS  ?= 2
ARGS      ?=
PACKAGES  := common balance_service coupon_service order_service payment_service deploy tests benchmarks

export PYTHONDONTWRITEBYTECODE ?= 1

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Prepare .venv with pinned, hashed dependencies (nothing outside it)

$(STAMP): requirements/dev.txt
	@echo "Preparing $(VENV) (about half a minute) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tally needs Python 3.11 or newer; set PYTHON=/path/to/python3")'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -c 'import pathlib, site, sys; pathlib.Path(site.getsitepackages()[0], "tally.pth").write_text("\n".join(sys.argv[1:]) + "\n")' "$(CURDIR)" "$(CURDIR)/protos/gen"
	@touch $@

.PHONY: demo
demo: $(STAMP) ## Run a flash sale on a fresh stack and prove that the books balance
	@$(BIN)/python -m deploy.local.demo $(ARGS)

.PHONY: up
up: $(STAMP) ## Start everything and keep it running (REPLICAS=2 DATA_DIR=.tally/data)
	@$(BIN)/python -m deploy.local up --replicas $(REPLICAS) --data-dir $(DATA_DIR) $(ARGS)

.PHONY: audit
audit: $(STAMP) ## Prove the invariants of a stack, running or stopped (DATA_DIR=.tally/data)
	@$(BIN)/python -m deploy.audit --data-dir $(DATA_DIR) $(ARGS)

.PHONY: grpcurl
grpcurl: $(STAMP) ## Run grpcurl, e.g. make grpcurl ARGS='-plaintext localhost:50051 list'
	@$(BIN)/grpcurl $(ARGS)

.PHONY: test
test: $(STAMP) ## Run every test: unit, integration, concurrency
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: test-concurrency
test-concurrency: $(STAMP) ## Run the concurrency suite alone (ARGS='--count=20' is not needed: loop it)
	@$(BIN)/python -m pytest tests/concurrency $(ARGS)

.PHONY: check
check: $(STAMP) ## Lint, types, import rules, proto lint, drift of generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=$(CURDIR):$(CURDIR)/protos/gen $(BIN)/lint-imports --no-cache
	@$(BIN)/python -m protos.generate --lint --check

.PHONY: format
format: $(STAMP) ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

.PHONY: stubs
stubs: $(STAMP) ## Generate the Python stubs from the protos
	@$(BIN)/python -m protos.generate

.PHONY: bench
bench: $(STAMP) ## Measure DeductBalance against an empty gRPC method, as a ratio in one run
	@$(BIN)/python -m benchmarks.ratio $(ARGS)

.PHONY: lock
lock: $(STAMP) ## Lock the dependencies again, with hashes
	@for f in runtime dev; do $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock" requirements/$$f.in -o requirements/$$f.txt || exit 1; done

.PHONY: clean
clean: ## Remove .venv, data directories and caches
	rm -rf $(VENV) .tally .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
