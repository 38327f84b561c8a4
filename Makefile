# Variables to override: PYTHON (which interpreter), VENV (where to install), PINS= (install without the pins).
PYTHON ?= python3.11
VENV ?= .venv
PINS ?= -c constraints.txt

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PINS)

.DEFAULT_GOAL := help
.PHONY: help run test test-slow chaos bench lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

run: $(VENV)/.run ## install, then raw data to answered requests for all three tasks
	$(BIN)/minibatch demo --fresh

test: lint ## install with development tools, lint, run the quick tests
	$(BIN)/python -m pytest -m "not slow and not chaos"

test-slow: $(VENV)/.dev ## what takes too long for make test
	$(BIN)/python -m pytest -m slow

chaos: $(VENV)/.dev ## the tests that kill, fill and cut
	$(BIN)/python -m pytest -m chaos

bench: $(VENV)/.dev ## every claim of benchmarks/, against its peer; PEERS_PYTHON=… has those of the server
	for claim in benchmarks/[a-z]*.py $$(grep -l '^"""Claim' benchmarks/serving/*.py); do $(BIN)/python "$$claim" || exit 1; done

lint: $(VENV)/.dev ## ruff, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## rewrite in the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and what tools left; records, runs and exports stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One environment, two stamps: the second only adds the development tools.
$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing into $(VENV): about 2.7 GB, some minutes"
	$(PIP) -e ".[all]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing into $(VENV) with the development tools: about 3.4 GB, some minutes"
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/.run

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
