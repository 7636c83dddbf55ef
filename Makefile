# Every target sets up what it needs in .venv first; nothing outside this folder changes.

VENV := .venv
BIN := $(VENV)/bin
# Tests mostly wait: with fewer than four workers two processors are idle half of the time.
WORKERS ?= $(shell cpus=$$(nproc); echo $$((cpus < 4 ? 4 : cpus)))
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.PHONY: demo test cluster lint bench mutants chaos faults help

demo: $(VENV)/.with-demo ## train 80 small models on this machine and print the table (the second time: only the table)
	@PATH="$(CURDIR)/$(BIN):$$PATH" docs/examples/demo/run.sh

test: $(VENV)/.with-tests ## run every test; what cannot run here is listed at the end   (ARGS="-k claim" for some)
	@$(PYTEST) $(ARGS)

cluster: $(VENV)/.with-tests ## the tests inside batch systems alone, with a real Slurm of this machine
	@$(PYTEST) tests/e2e/test_cluster.py $(ARGS)

# On both databases at the same time: the faults are mostly waiting.
chaos: $(VENV)/.with-tests ## two minutes of random faults on a fleet   (ARGS="--minutes 20 --seed 7" for others)
	@for database in sqlite mariadb; do \
	    $(BIN)/python -m tests.faults.chaos --brief --database $$database $(ARGS) & runs="$$runs $$!"; \
	done; \
	failed=0; for run in $$runs; do wait $$run || failed=1; done; exit $$failed

faults: $(VENV)/.with-tests ## every test of faults, then chaos
	@$(PYTEST) tests/faults
	@$(MAKE) --no-print-directory chaos

lint: $(VENV)/.with-tests ## check format, style and types
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check . ; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary pyexp_daemon tests $(wildcard benchmarks)

bench: $(VENV)/.with-tests ## measure against other systems and print the table   (ARGS="peers --json FILE" for some)
	@$(BIN)/python -m benchmarks $(ARGS)

mutants: $(VENV)/.with-tests ## break the protocol in small ways and see each caught by its test   (ARGS="--only NAME")
	@$(BIN)/python -m tests.faults.mutants $(ARGS)

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

# What one installation has, another one lacks: `make demo` does not wait for the libraries of the tests.
$(VENV)/.with-demo: EXTRAS := demo
$(VENV)/.with-tests: EXTRAS := test,demo,export,ssh,codecarbon
$(VENV)/.with-%: pyproject.toml constraints.txt
	@for python in $(PYTHON) python3 python3.11 python3.12 python3.13 python3.14; do \
	    "$$python" -c '$(ENOUGH)' 2> /dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "Python 3.11 or newer with venv is needed (Debian: apt install python3-venv); make PYTHON=… names another one" >&2; \
	    exit 1; \
	fi; \
	echo "setting up $(VENV) ($(EXTRAS)) …"; \
	$(BIN)/python -c '$(ENOUGH)' 2> /dev/null || "$$python" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
