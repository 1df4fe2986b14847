# The whole workflow. Every target makes its own .venv from pinned versions when that is not there yet.

PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/demo
DATA ?= data/demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format types bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[sim,dev]'
	@touch $@

demo: .venv/installed  ## three made-up hospitals: DICOM files, ingest, federation, report (about 5 minutes on 2 cores)
	$(BIN)/cxrbase-sim phantom --hospitals 3 --out $(DATA)
	@for site in $(DATA)/*/SITE.yaml; do $(BIN)/cxrbase-client ingest $$site --plan configs/plans/demo.yaml || exit 1; done
	$(BIN)/cxrbase-sim run configs/sim/demo.yaml --data $(DATA) --out $(RUN) --resume

test: .venv/installed  ## the tests (about 9 minutes on 2 cores, no GPU needed)
	$(BIN)/python -m pytest

test-all: .venv/installed  ## the tests and the long ones: fuzzing, killed runs, a faulty network, a soak (over an hour)
	$(BIN)/python -m pytest -m "slow or not slow"

lint: .venv/installed  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed  ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: .venv/installed  ## mypy --strict alone
	$(BIN)/mypy

bench: .venv/installed  ## measure speed as ratios; JSON as the last line
	$(BIN)/python -m bench $(PARTS)

clean:  ## remove the virtual environment, caches, and the demo's data and runs
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist *.egg-info $(DATA) $(RUN)
