# make demo: train on real handwritten digits.   make test: all that CI runs.
SHELL := /bin/bash
# Suites share the machine's cores and ports: one after the other, also under make -j.
.NOTPARALLEL:

USABLE := 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
# The first that runs, has the version and can make environments; another one by `make PYTHON=...` after `make clean`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c $(USABLE) 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help demo test unit integration fault lint bench clean

help:
	@echo "make demo    set up .venv and train experiments/digits.yaml"
	@echo "make test    set up .venv, lint, and run the unit, integration and fault tests"
	@echo "make unit    one suite; also: make integration, make fault"
	@echo "make lint    ruff, mypy, import contracts"
	@echo "make bench   measure what README claims, on this machine; writes to benchmarks/results/ (20 minutes)"
	@echo "make clean   delete .venv and what tools left behind"

$(STAMP): pyproject.toml
	@case "$(CURDIR)" in *" "*) echo "$(CURDIR): has a space, from where Ray 2.60 cannot start its workers." \
	"Move the folder to a path without spaces."; exit 1;; esac
	@$(BIN)/python -c $(USABLE) 2>/dev/null || { python="$(PYTHON)"; "$$python" -c $(USABLE) 2>/dev/null || { \
	echo "PYTHON: got '$$python', must be a Python from 3.11 to 3.13 that has pip and venv. Install one (Debian and" \
	"Ubuntu: apt install python3-venv), or name one: make PYTHON=/path/to/python."; exit 1; }; \
	"$$python" -m venv --clear .venv; }
	@echo "Installing into .venv; the first time takes minutes, because PyTorch and Ray are large."
	@$(BIN)/python -m pip install --quiet -e ".[dev]" || { echo "pip failed. If it found no version of a package" \
	"for $$($(BIN)/python --version), try another Python: make clean, then make PYTHON=python3.12."; exit 1; }
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

# -k: a suite that fails does not hide what the next ones say. Each ends with its own time.
test: lint
	@$(MAKE) --no-print-directory -k unit integration fault

# Leave the machine alone meanwhile.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.overhead

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build *.egg-info
