# Two commands set everything up on a machine with Python 3.11+, g++ and make:
#
#   make demo     train a small EfficientNet-style network on real digits, eager and Shorthaul side by side
#   make test     lint, type check and the sampled test suite
#
# Both make their own virtual environment in .venv and install pinned requirements into it with pip,
# using whatever package index pip is configured for. `make help` lists the other targets.

PYTHON  ?= python3
VENV    ?= .venv
JOBS    ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
ARGS    ?=
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format bench docs clean distclean check-python check-compiler venv venv-dev

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

# --- the virtual environment ------------------------------------------------------------------------------

check-python:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "error: '$(PYTHON)' not found. Install Python 3.11 or later, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $$("$(PYTHON)" --version) is too old; Shorthaul needs Python 3.11 or later. Name another: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: this Python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

check-compiler:
	@command -v "$${CXX:-g++}" >/dev/null 2>&1 || command -v clang++ >/dev/null 2>&1 || { \
	  echo "error: no C++ compiler found; the CPU kernels are compiled with one." >&2; \
	  echo "       On Debian and Ubuntu: apt-get install g++    On Fedora: dnf install gcc-c++" >&2; exit 1; }

# A stamp is newer than what it was made from. Changed requirements make the environment anew.
$(VENV)/.base: requirements-torch.txt requirements.txt
	@$(MAKE) --no-print-directory check-python
	@echo "Making the virtual environment $(VENV) (once; a few minutes, mostly the download of PyTorch) ..."
	@"$(PYTHON)" -m venv --clear "$(VENV)"
	@echo "  installing PyTorch"
	@$(PIP) -r requirements-torch.txt
	@echo "  installing what the demo needs"
	@$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.base requirements-dev.txt
	@echo "  installing what the tests need"
	@$(PIP) -r requirements-dev.txt
	@touch $@

$(VENV)/.package: $(VENV)/.base pyproject.toml
	@echo "  installing Shorthaul itself (editable)"
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

venv: $(VENV)/.base $(VENV)/.package  ## make the virtual environment for the demo
venv-dev: $(VENV)/.base $(VENV)/.dev $(VENV)/.package  ## make it for the tests as well

# --- jobs -------------------------------------------------------------------------------------------------

demo: check-compiler venv  ## train on real digits, eager and Shorthaul side by side
	@$(BIN)/shorthaul demo $(ARGS)

# Every worker uses one thread, so that the workers share the cores instead of fighting over them.
test: check-compiler venv-dev lint  ## lint, type check and the sampled test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-all: check-compiler venv-dev lint  ## everything, slow tests too; resumes where it stopped for the same sources
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --full --resume -n $(JOBS) --dist worksteal $(ARGS)

lint: venv-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

format: venv-dev  ## let ruff order imports and repair what it can
	$(BIN)/ruff check --fix .

bench: check-compiler venv  ## measure training steps and compile times on this CPU
	$(BIN)/python -m benchmarks.cpu $(ARGS)

docs: venv-dev  ## build the documentation site into build/site
	$(BIN)/python -m mkdocs build --quiet

clean:  ## remove what builds, tests and benchmarks wrote
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .test-all shorthaul-demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## and the virtual environment
	rm -rf "$(VENV)"
