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
.PHONY: help demo test test-all lint format bench docs clean distclean check-python check-compiler check-browser check-page venv venv-dev

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

# The studio's page is tested in a real browser. As root (continuous integration) it is installed here, otherwise the remedy is said.
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
check-browser:
	@for b in "$$SHORTHAUL_BROWSER" $(BROWSERS); do [ -n "$$b" ] && command -v "$$b" >/dev/null 2>&1 && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
	  echo "Installing chromium with apt-get, for the tests of the studio's page ..."; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null && exit 0; \
	fi; \
	echo "error: no Chromium or Chrome found; the studio's page is tested in one." >&2; \
	echo "       On Debian and Ubuntu: apt-get install chromium    Elsewhere: name one in SHORTHAUL_BROWSER" >&2; exit 1

# TypeScript's checker reads the page's JavaScript where Node.js is there; npm keeps it under the virtual environment.
TYPESCRIPT := 5.9.3
TSC := $(VENV)/typescript-$(TYPESCRIPT)/node_modules/.bin/tsc
$(TSC):
	@mkdir -p $(VENV)/typescript-$(TYPESCRIPT) && npm install --silent --no-save --prefix $(VENV)/typescript-$(TYPESCRIPT) typescript@$(TYPESCRIPT)

check-page:  ## type check the studio's JavaScript (needs Node.js; said and skipped without)
	@if command -v npm >/dev/null 2>&1; then $(MAKE) --no-print-directory $(TSC) && $(TSC) -p shorthaul/gui/static/tsconfig.json && echo "page: no type errors"; \
	else echo "page: not type checked, Node.js is not installed"; fi

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
test: check-compiler check-browser venv-dev lint  ## lint, type check and the sampled test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-all: check-compiler check-browser venv-dev lint  ## everything, slow tests too; resumes where it stopped for the same sources
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --full --resume -n $(JOBS) --dist worksteal $(ARGS)

lint: venv-dev check-page  ## ruff, mypy, and the type check of the studio's page
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
