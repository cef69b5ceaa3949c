# The commands of the project. `make` without a target lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

PYTHON    ?= python3
VENV      := .venv
BIN       := $(VENV)/bin
STAMP     := $(VENV)/.ready
DATA_DIR  ?= .tally/data
REPLICAS  ?= 2
# One more than the cores of a small machine: many tests wait for processes to start and to end.
WORKERS   ?= 3
ARGS      ?=
# For the programs that read databases by their addresses as well: only a directory that was given.
OF_DIR    = $(if $(filter-out file,$(origin DATA_DIR)),--data-dir '$(DATA_DIR)')
# The options of `make up` that have variables of their own.
STACK     = --replicas $(REPLICAS) --data-dir $(DATA_DIR) $(if $(METRICS_PORT),--metrics-port $(METRICS_PORT)) $(if $(MONITORING),--monitoring)

export PYTHONDONTWRITEBYTECODE ?= 1

.PHONY: help
help: ## List the commands; ARGS='...' passes options to the program that a command runs
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Prepare .venv from pinned, hashed packages (other commands do this when needed)

$(STAMP): requirements/dev.txt
	@echo "Preparing $(VENV) (about a minute, longer on a slow network or a busy machine) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tally needs Python 3.11 or newer; set PYTHON=/path/to/python3")'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -c 'import pathlib, site, sys; pathlib.Path(site.getsitepackages()[0], "tally.pth").write_text("\n".join(sys.argv[1:]) + "\n")' "$(CURDIR)" "$(CURDIR)/protos/gen"
	@touch $@

.PHONY: demo
demo: $(STAMP) ## Run a flash sale on a fresh stack, audit its books, stop everything (AUTH=1: with tokens)
	@$(BIN)/python -m deploy.local.demo $(if $(AUTH),--auth) $(ARGS)

.PHONY: up
up: $(STAMP) ## Start all services and keep them running until Ctrl-C (REPLICAS=2 DATA_DIR=.tally/data AUTH=1 METRICS_PORT=50060 MONITORING=1)
	@$(BIN)/python -m deploy.local up $(STACK) $(ARGS)

.PHONY: watch
watch: $(STAMP) ## Show live in the terminal what a running stack does (DATA_DIR=.tally/data ARGS=--once)
	@$(BIN)/python -m deploy.watch --data-dir $(DATA_DIR) $(ARGS)

.PHONY: audit
audit: $(STAMP) ## Check that the books of a stack balance, running or stopped (DATA_DIR=.tally/data ARGS=-v)
	@$(BIN)/python -m deploy.audit $(OF_DIR) $(ARGS)

.PHONY: why
why: $(STAMP) ## Show all about an order, user, saga, payment_key, request_id … (ID=… DATA_DIR=.tally/data)
	@$(BIN)/python -m deploy.why $(if $(ID),'$(ID)') $(OF_DIR) $(ARGS)

.PHONY: rebuild
rebuild: $(STAMP) ## Rebuild every balance from the ledger, and compare; change nothing (DATA_DIR=.tally/data)
	@$(BIN)/python -m deploy.rebuild $(OF_DIR) $(ARGS)

.PHONY: grpcurl
grpcurl: $(STAMP) ## Call a running service, e.g. ARGS='-plaintext localhost:50051 list'
	@$(BIN)/grpcurl $(ARGS)

# The tests start some hundred processes: only the first one compiles the modules. Files are given
# out in the order of tests/conftest.py.
.PHONY: test
test: export PYTHONDONTWRITEBYTECODE =
test: $(STAMP) ## Run all tests in WORKERS=3 processes, or some: ARGS='tests/unit -k saga'
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: test-no-redis
test-no-redis: export PYTHONDONTWRITEBYTECODE =
test-no-redis: $(STAMP) ## Run the other half: all tests that `make test` runs with Redis only, without it
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --no-redis tests/integration $(ARGS)

.PHONY: test-concurrency
test-concurrency: $(STAMP) ## Run only the concurrency tests, each with its control
	@$(BIN)/python -m pytest tests/concurrency $(ARGS)

.PHONY: test-locks
test-locks: $(STAMP) ## Pass a lock on a million times between four processes; check overlaps and fairness (15 minutes)
	@$(BIN)/python -m pytest tests/lock_runs $(ARGS)

.PHONY: test-kills
test-kills: $(STAMP) ## Kill each kind of process during a demo, restart the stack, audit (12 minutes)
	@$(BIN)/python -m pytest tests/chaos/test_kill_any_process.py $(ARGS)

.PHONY: test-replicas
test-replicas: $(STAMP) ## Run 4 replicas of each service as in the manifests; check balancing, restarts and kills (14 minutes)
	@$(BIN)/python -m pytest tests/replicas $(ARGS)

.PHONY: test-pooler
test-pooler: $(STAMP) ## Run the services through PgBouncer 1.21 or newer, the installed one or PGBOUNCER=/path
	@$(BIN)/python -m pytest tests/pooler $(ARGS)

.PHONY: test-monitoring
test-monitoring: $(STAMP) ## Let alerts fire and resolve under real faults, with a real Prometheus (15 minutes)
	@$(BIN)/python -m pytest tests/monitoring $(ARGS)

.PHONY: test-crash
test-crash: $(STAMP) ## Let real processes fail at every failpoint, write docs/guides/failures.md (30 minutes)
	@$(BIN)/python -m tests.faults crash $(ARGS)

.PHONY: test-outages
test-outages: $(STAMP) ## Take each dependency away for 1 s, 30 s and 15 minutes, compressed (20 minutes)
	@$(BIN)/python -m tests.faults outages $(ARGS)

.PHONY: test-chaos
test-chaos: $(STAMP) ## Mix faults of all kinds under load, compare replies and books (ARGS='--seed 1 --minutes 10')
	@$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: failpoints
failpoints: $(STAMP) ## List the failpoints, at which a test lets a service fail
	@$(BIN)/python -m tests.faults list

.PHONY: test-mutants
test-mutants: $(STAMP) ## Plant bugs in copies of the project, one by one; the tests must catch each (20 minutes)
	@$(BIN)/python -m tests.mutants $(ARGS)

.PHONY: check
check: $(STAMP) ## Lint code and protos, check types, imports, generated files and known vulnerabilities
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=$(CURDIR):$(CURDIR)/protos/gen $(BIN)/lint-imports --no-cache
	@$(BIN)/python -m protos.generate --lint --check
	@$(BIN)/python -m tests.support.contract_gaps
	@$(BIN)/python -m deploy.reference --check
	@$(BIN)/python -m deploy.monitoring.grafana --check
	@$(BIN)/python -m deploy.kubernetes render --check
	@$(BIN)/python -m deploy.kubernetes validate
	@$(BIN)/python -m deploy.supply advisories

.PHONY: format
format: $(STAMP) ## Format the code and apply the fixes of ruff
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

.PHONY: stubs
stubs: $(STAMP) ## Generate the Python stubs and the service config from protos/
	@$(BIN)/python -m protos.generate

.PHONY: docs
docs: $(STAMP) ## Generate settings, metrics, errors, access and licences of docs/ from the code
	@$(BIN)/python -m deploy.reference

.PHONY: dashboards
dashboards: $(STAMP) ## Generate Grafana's dashboards in deploy/monitoring from the views
	@$(BIN)/python -m deploy.monitoring.grafana

.PHONY: manifests
manifests: $(STAMP) ## Render deploy/kubernetes for the release in pyproject.toml, and validate the result
	@$(BIN)/python -m deploy.kubernetes render
	@$(BIN)/python -m deploy.kubernetes validate

.PHONY: bench
bench: $(STAMP) ## Measure every path against an empty gRPC method, on an idle machine (70 minutes)
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: bench-quick
bench-quick: $(STAMP) ## Measure the same with short periods, without the parts that take minutes (about 4 minutes)
	@$(BIN)/python -m benchmarks --quick $(ARGS)

.PHONY: lab
lab: $(STAMP) ## Run the same races under each locking strategy, on an idle machine (45 minutes at most)
	@$(BIN)/python -m benchmarks.lab $(ARGS)

.PHONY: lab-quick
lab-quick: $(STAMP) ## Run the strategy lab with a tenth of the requests (under 5 minutes)
	@$(BIN)/python -m benchmarks.lab --quick $(ARGS)

.PHONY: k6
k6: $(STAMP) ## Load 4 replicas with duplicate payments and a flash sale (ARGS='--users 1000 --vus 20')
	@$(BIN)/python -m deploy.load $(ARGS)

.PHONY: k6-nginx
k6-nginx: $(STAMP) ## Run the k6 load through nginx with round robin
	@$(BIN)/python -m deploy.load --through-nginx $(ARGS)

.PHONY: dist
dist: $(STAMP) ## Build the wheel and the sdist of the Python client into dist/
	@$(BIN)/python -m deploy.package $(ARGS)

.PHONY: image
image: $(STAMP) ## Build the container images, with SBOMs in dist/sbom (ARGS='--base IMAGE --tag TAG')
	@$(BIN)/python -m deploy.docker image $(ARGS)

.PHONY: sbom
sbom: $(STAMP) ## Write an SBOM (CycloneDX) of each image into dist/sbom
	@$(BIN)/python -m deploy.supply sbom $(ARGS)

.PHONY: compose-secrets
compose-secrets: $(STAMP) ## Create the passwords for deploy/docker/compose.yaml in .tally/compose, once
	@$(BIN)/python -m deploy.docker secrets $(ARGS)

.PHONY: lock
lock: $(STAMP) ## Resolve requirements/*.in again and pin the result with hashes
	@for f in runtime dev simulator; do $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock" requirements/$$f.in -o requirements/$$f.txt || exit 1; done

.PHONY: clean
clean: ## Remove .venv, caches and .tally with all its data
	rm -rf $(VENV) .tally dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
