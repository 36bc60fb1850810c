# make demo: train on real handwritten digits.   make test: all that CI runs.
SHELL := /bin/bash
# A Python from 3.11 to 3.13; another one by `make PYTHON=...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help demo test unit integration fault lint bench clean

help:
	@echo "make demo    set up .venv and train experiments/digits.yaml"
	@echo "make test    set up .venv, lint, and run the unit, integration and fault tests"
	@echo "make lint    ruff, mypy, import contracts"
	@echo "make bench   measure what benchmarks/ claims; writes benchmarks/results/"
	@echo "make clean   delete .venv and what tools left behind"

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python from 3.11 to 3.13 with its venv module was found. Install one, or say make PYTHON=/path/to/python."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/convoy train experiments/digits.yaml --overwrite

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit integration fault: $(STAMP)
	$(BIN)/python -m pytest tests/$@ -q --durations=5

test: $(STAMP)
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest tests/unit tests/integration tests/fault -q --durations=10

bench: $(STAMP)
	$(BIN)/python benchmarks/overhead.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
