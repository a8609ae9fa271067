PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TRITON := 3.9.0
NEWEST := $(VENV)/triton-$(TRITON)

.DEFAULT_GOAL := help
.PHONY: help demo test newest check docs install-check format bench clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(READY): pyproject.toml models/weights/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e models/weights -e '.[dev,docs,demo,triton]'
	touch $@

demo: $(READY)  ## plan FLUX.1-dev and HunyuanVideo, sample two small trained models dense and planned
	$(BIN)/planner demo

test: $(READY)  ## run the tests (no GPU, no network)
	$(BIN)/pytest -n 2 --dist worksteal
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 --dist worksteal tests/interpreted

$(NEWEST)/.ready: $(READY)
	$(BIN)/pip install -q --no-deps --upgrade --target $(NEWEST) triton==$(TRITON)
	touch $@

newest: $(NEWEST)/.ready  ## compile emitted kernels with the newest Triton that they are known to work with
	PYTHONPATH=$(NEWEST) $(BIN)/pytest -n 2 tests/codegen/emit/test_goldens.py -k "compile_for_their_target and (hopper_flux_grat_b or hopper_pairs_rules or hopper_64 or triton_means)"

check: $(READY)  ## ruff, pyright, the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

docs: $(READY)  ## build the documentation site into build/docs, warnings as errors
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs

install-check: $(READY)  ## install the wheel without extras into a fresh environment, and plan, compile and run a model with it
	rm -rf build/wheel build/plain && $(PYTHON) -m venv build/plain
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w build/wheel .
	build/plain/bin/pip install -q -c constraints.txt torch
	build/plain/bin/pip install -q -c constraints.txt build/wheel/*.whl
	build/plain/bin/python tests/packaging/plain_install.py

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## measure on this machine; writes bench/results
	$(BIN)/python -m bench.planning
	$(BIN)/python -m bench.grouped_sdpa
	$(BIN)/python -m bench.hoisting
	$(BIN)/python -m bench.kernel_builds

clean:  ## remove what make built
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
