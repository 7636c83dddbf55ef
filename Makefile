# Every target sets up what it needs in .venv first; nothing outside this folder changes.

VENV := .venv
BIN := $(VENV)/bin
ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.PHONY: demo test lint bench help

demo: $(VENV)/.with-demo ## train 80 small models on this machine and print the table (the second time: only the table)
	@PATH="$(CURDIR)/$(BIN):$$PATH" docs/examples/demo/run.sh

test: $(VENV)/.with-tests ## run every test; what cannot run here is listed at the end   (ARGS="-k claim" for some)
	@$(BIN)/python -m pytest -q -n auto --dist worksteal $(ARGS)

lint: $(VENV)/.with-tests ## check format, style and types
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check . ; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary pyexp_daemon tests $(wildcard benchmarks)

bench: $(VENV)/.with-tests ## measure against other systems and print the table   (ARGS="…" for some)
	@$(BIN)/python -m benchmarks $(ARGS)

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
