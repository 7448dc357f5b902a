# Everything runs from .venv, which `make install` makes; `demo`, `test` and the others install first by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench soak upgrade lock clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

install: $(STAMP)  ## the virtual environment .venv, with raysight in it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raysight needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 …")'
	@echo 'Installing into $(VENV). The first time fetches gigabytes (torch) and takes minutes.'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## from nothing to features of real photographs, and a picture of nearest neighbours
	$(BIN)/python -m demo

test: lint  ## lint, then all tests but the soak
	$(BIN)/python -m pytest

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the code the way ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## the project's measurements in their quick form, as tables with ratios
	$(BIN)/raysight bench

soak: $(STAMP)  ## the tests that take longer than the test budget
	$(BIN)/python -m pytest -m soak --timeout 3600

upgrade: $(STAMP)  ## the newest versions that the ranges allow, into .venv and constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev]'
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable --exclude certifi; } > constraints.new
	mv constraints.new constraints.txt
	@touch $(STAMP)
	$(BIN)/python deploy/lock.py

lock: $(STAMP)  ## deploy/requirements.lock, which the image installs, from constraints.txt
	$(BIN)/python deploy/lock.py

clean:  ## remove what the targets made, the virtual environment too
	rm -rf $(VENV) demo-output bench-output build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
