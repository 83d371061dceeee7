# Two commands: `make demo` runs the main job, `make test` passes the tests.
# Both first make the environment (.venv), once; pinned versions are in constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check format docs setup clean

demo: $(READY)
	$(BIN)/softprompt demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(READY)
	$(BIN)/python benchmarks/docs_reference.py
	$(BIN)/mkdocs build --strict

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "softprompt needs Python 3.11 or newer; try: make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is missing; on Debian: apt install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[data,tensorboard,trackers,lora,quantised,compare,report,umap,harness,serve,docs,dev]'
	$(BIN)/softprompt models --fetch smollm2-135m
	@touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
