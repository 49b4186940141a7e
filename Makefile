# Every command sets up what it needs in .venv; nothing has to be installed before but python3 (3.10 or later) and make.
# PYTHON=python3.12 make test   chooses the interpreter; rm -r .venv begins anew.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo test test-quick check format bench lab clean

help:
	@echo "make demo        set up everything, run notebooks/quickstart.ipynb in a real kernel, show what happened"
	@echo "make test        set up and run all tests"
	@echo "make test-quick  the fast part of the tests"
	@echo "make check       ruff and mypy"
	@echo "make format      let ruff mend what it can"
	@echo "make bench       speed, side by side with others"
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make clean       remove what the other commands have made"

# One stamp for each set of extras; a change of pyproject.toml installs anew.
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "jupyter_tasks needs Python 3.10 or later; use PYTHON=python3.12 make ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/demo.stamp: $(VENV)/pyvenv.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/pyvenv.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@ $(VENV)/demo.stamp

$(VENV)/lab.stamp: $(VENV)/demo.stamp
	$(BIN)/python -m pip install --quiet -e '.[demo,lab]'
	@touch $@

$(VENV)/bench.stamp: $(VENV)/demo.stamp
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	@touch $@

demo: $(VENV)/demo.stamp
	@$(BIN)/python scripts/demo.py

test: $(VENV)/dev.stamp
	$(PYTEST)

test-quick: $(VENV)/dev.stamp
	$(PYTEST) -m "not slow"

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/run.py

lab: $(VENV)/lab.stamp
	$(BIN)/jupyter lab notebooks/quickstart.ipynb

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
