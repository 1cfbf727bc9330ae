# `make demo` and `make test` need python3 (3.11 or newer) and nothing else.

PYTHON ?= python3
# Any pip requirement: TORCH=torch==2.8.0 takes another release, TORCH=./torch-....whl a local wheel.
TORCH ?= torch==2.13.0
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread for each pytest worker; otherwise they fight over the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow lint format docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

venv: $(STAMP) ## create .venv and install the package with all its extras

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gp_deq needs Python 3.11 or newer, this is " + sys.version)'
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: $(STAMP) ## fit deep-equilibrium GPs and three baselines to a real data set
	$(BIN)/gp-deq demo

test: $(STAMP) ## run the tests, all but the slow ones
	$(ONE_THREAD) $(PYTEST) -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-slow: $(STAMP) ## run the slow tests
	$(ONE_THREAD) $(PYTEST) -n $(WORKERS) --dist worksteal -m slow $(PYTEST_ARGS)

lint: $(STAMP) ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy gp_deq

format: $(STAMP) ## format the code and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## build the documentation, warnings being errors
	$(BIN)/sphinx-build -W --keep-going --quiet -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean: ## remove everything that the other targets made
	rm -rf $(VENV) build dist docs/_build docs/tutorials/*.ipynb
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find gp_deq tests docs tutorials -name __pycache__ -type d -prune -exec rm -rf {} +
