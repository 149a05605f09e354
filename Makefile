# `make` or `make help` lists the targets. On a fresh machine each first makes its environment in .venv.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?= -n 2 --dist loadfile
SOAK_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env demo test soak style quality

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

env: $(STAMP) ## make the environment (PYTHON, VENV and PIP_ARGS may be set)

demo: $(STAMP) ## train and compare on the embedded demo set, offline, in minutes: table, model, card
	$(BIN)/python benchmarks/demo.py

test: $(STAMP) ## run the tests (PYTEST_ARGS may be set)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

soak: $(STAMP) ## fuzz readers, kill runs at each file operation, watch memory, audit: an hour (SOAK_ARGS may be set)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[soak]"
	$(BIN)/python benchmarks/soak.py $(SOAK_ARGS)
	$(BIN)/python benchmarks/report.py

style: $(STAMP) ## rewrite the files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(STAMP) ## check style, types and imports, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

# torch first: pip then has no choice left that could pull another build of it; not compiling ahead halves the time
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[dev,offline,track,milvus,space]"
	touch $@
