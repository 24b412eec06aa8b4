# make run     install what is missing and start the server on 127.0.0.1:8080
# make test    install what is missing and run the tests
# make test-e2e  only those that drive the console in a browser (Chromium; without one they skip, and say so)
# make check   lint, types and import contracts
# make console  build the console's page anew into service/web/built (Node.js 20 or newer; only after changing it)
#
# On a machine without an NVIDIA GPU torch is held at the version in constraints-cpu.txt, of which pip takes a CPU
# build where one is on offer; TORCH_INDEX=URL adds a package index that has one.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

ifeq ($(shell command -v nvidia-smi),)
CONSTRAINTS := -c constraints-cpu.txt
endif
ifdef TORCH_INDEX
INDEX := --extra-index-url $(TORCH_INDEX)
endif

.PHONY: run test test-e2e check lint types contracts docs console screenshots clean

run: $(VENV)/.run-installed
	$(BIN)/attune serve

test: $(VENV)/.dev-installed
	$(BIN)/python -m pytest

test-e2e: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -m e2e -rs

check: lint types contracts

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev-installed
	$(BIN)/mypy

contracts: $(VENV)/.dev-installed
	$(BIN)/lint-imports

docs: $(VENV)/.run-installed
	$(BIN)/python -m service.settings > docs/settings.md

console:
	cd service/web && npm ci && npm run check && npm run build

screenshots: $(VENV)/.dev-installed
	$(BIN)/python -m tests.e2e.screenshots docs

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Attune needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: $(VENV)/bin/python pyproject.toml constraints-cpu.txt
	@echo "Installing Attune into $(VENV) (a minute or two, the first time) ..."
	$(PIP) install $(CONSTRAINTS) $(INDEX) -e ".[cpu]"
	@touch $@

$(VENV)/.dev-installed: $(VENV)/.run-installed
	@echo "Installing the tools for tests ..."
	$(PIP) install $(CONSTRAINTS) $(INDEX) -e ".[cpu,dev,bench]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
