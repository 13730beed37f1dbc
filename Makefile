# make demo: the whole system on a simulated cohort.  make test: all tests.  make bench: timings.
# make weights GLIOMAS=folder CONTOURS=folder: train what the bundles ship.
# Each sets up what it needs in .venv; `make clean` removes it.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: demo test test-fast bench weights clean

test: $(VENV)/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest

test-fast: $(VENV)/ready
	$(PY) -m pytest -m "not slow"

demo: $(VENV)/ready
	bash demo.sh $(PY)

weights: $(VENV)/ready
	bash weights.sh $(PY) brats "$(GLIOMAS)"
	bash weights.sh $(PY) vs "$(CONTOURS)"

bench: $(VENV)/ready
	$(PY) -m benchmarks

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	@echo "installing into $(VENV), a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) demo
