# Works with GNU make 3.81, which macOS ships: no .ONESHELL, no !=.
# Set PYTHON to choose the interpreter that .venv is made from; ARGS go to the command that a target runs.

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
PYTHON ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test verify bench lint clean

help:  ## say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/.ready  ## make .venv with the pinned dependencies

run: $(VENV)/.ready  ## set up and run the main job: network_partition (ARGS="--seed 7" and the like)
	@$(PY) -m chaos.toxiproxy.launcher
	@$(PY) -m chaos.run network_partition $(ARGS)

# Live clusters come last and alone: whatever ran beside one would be part of what it measures.
test: lint  ## set up and pass the checks and tests (the CI gate)
	$(PY) -m pytest -m "not verify" -n 2 --ignore tests/live $(ARGS)
	$(PY) -m pytest -m "not verify" tests/live $(ARGS)

verify: $(VENV)/.ready  ## all live evidence; can be resumed
	$(PY) -m tests.verify $(ARGS)

bench: $(VENV)/.ready  ## ratios against peers and raw parts
	$(PY) -m tests.bench $(ARGS)

lint: $(VENV)/.ready  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy

clean:  ## remove .venv and everything that can be made again; results stay
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Candidates are run, not only found: a version manager's shim may exist for a Python that does not.
# The stamp goes first and comes back last, so that an interrupted setup leaves none. A .venv that works is kept,
# because a changed pin then costs one download and not all of them.
$(VENV)/.ready: requirements.lock pyproject.toml
	@rm -f $@
	@set -e; \
	right='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(PY) -c "$$right" 2>/dev/null || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  chosen=; \
	  for candidate in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
	    if "$$candidate" -c "$$right" >/dev/null 2>&1; then chosen=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$chosen" ]; then \
	    echo "setup: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  echo "setup: making $(VENV) with $$("$$chosen" --version)"; \
	  "$$chosen" -m venv --clear $(VENV); \
	fi
	@echo "setup: installing the pinned dependencies (minutes the first time)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
