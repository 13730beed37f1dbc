# make demo: the whole system on a simulated cohort.  make test: all tests.  make bench: timings.
# make gpu-check: what a GPU does with it, in minutes.
# make peers PATIENT=folder: what one would use instead, on one patient.
# make stress: the tests of faults in full, for hours rather than minutes.
# make coverage: make test, with the lines and branches that it does not reach.
# make package-test, label-test, deploy-test, federated-test: what needs an environment of its own.
# make weights GLIOMAS=folder CONTOURS=folder: train what the bundles ship.
# Each sets up what it needs in .venv; `make clean` removes it.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
CONSTRAINTS ?= constraints.txt

.PHONY: demo test test-fast stress coverage bench gpu-check peers weights package-test label-test deploy-test federated-test clean

test: $(VENV)/ready
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	bash ci/zoo_style.sh $(PY)
	$(PY) -m mypy tissnet_components
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile

test-fast: $(VENV)/ready
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow and not stress" --numprocesses 2 --dist loadfile

stress: $(VENV)/ready
	OMP_NUM_THREADS=1 $(PY) -m pytest -m stress -rP

coverage: $(VENV)/ready
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile --cov

demo: $(VENV)/ready
	bash demo.sh $(PY)

weights: $(VENV)/ready
	bash weights.sh $(PY) brats "$(GLIOMAS)"
	bash weights.sh $(PY) vs "$(CONTOURS)"

bench: $(VENV)/ready
	$(PY) -W ignore -m benchmarks $(if $(ANEW),--anew)

gpu-check: $(VENV)/ready
	$(PY) -W ignore -m benchmarks.gpu_check

peers: .venv-peers/ready # nnU-Net v2 and others, in an environment of its own; 2 GB
	.venv-peers/bin/python -W ignore -m benchmarks.peers run "$(PATIENT)" $(OPTIONS)

.venv-peers/ready: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt --editable . "nnunetv2>=2.6,<3"
	@touch $@

package-test: $(VENV)/ready # the commands of docs/guide/zip.md with the zips alone, in an environment made for it
	$(PY) -m pytest environment_tests/test_standalone.py

label-test: .venv-label/ready # a real MONAI Label server, in its own environment: 8 GB
	.venv-label/bin/python -m pytest environment_tests/test_monai_label.py

deploy-test: .venv-deploy/ready # MONAI Deploy's operator, in its own environment
	.venv-deploy/bin/python -m pytest tests/bundles/test_export.py -k deploy

federated-test: .venv-federated/ready # NVFLARE's simulator with two sites, in its own environment
	.venv-federated/bin/python -m pytest environment_tests/test_nvflare.py

.venv-label/ready: environment_tests/label_requirements.txt
	$(PYTHON) -m venv .venv-label
	.venv-label/bin/python -m pip install --quiet --requirement $<
	@touch $@

.venv-deploy/ready: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[deploy]" pytest
	@touch $@

.venv-federated/ready: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv-federated
	.venv-federated/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[federated]" pytest
	@touch $@

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	@echo "installing into $(VENV), a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers .venv-label .venv-deploy .venv-federated demo
