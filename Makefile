# make demo: the whole system on a simulated cohort.  make test: all tests.  make bench: timings.
# Each sets up what it needs in .venv; `make clean` removes it.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test test-fast bench clean

test: $(VENV)/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest

test-fast: $(VENV)/ready
	$(PY) -m pytest -m "not slow"

demo: $(VENV)/ready
	bash demo.sh $(PY)

bench: $(VENV)/ready
	$(PY) -m benchmarks

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	@echo "installing into $(VENV), a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) demo
