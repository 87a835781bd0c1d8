# Two commands set everything up on a machine with Python 3.11+, git and make:
#   make evolve   installs, evolves a small study on the generated data set, prints the winner
#   make test     installs with the test extra, runs lint, types and tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GENERATIONS ?= 6

.PHONY: evolve test test-slow lint format install clean

evolve: $(VENV)/.installed
	$(BIN)/python -m evolve run --generations $(GENERATIONS) --set confirm.finalists=1 --set confirm.seeds=2

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy evolve detector

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed

# The stamps are newer than pyproject.toml and constraints.txt exactly when nothing has to be installed.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[export]'
	$(BIN)/python -m compileall -q $(VENV)/lib > /dev/null || true
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m compileall -q $(VENV)/lib > /dev/null || true
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info
