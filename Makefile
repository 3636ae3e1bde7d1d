# SPDX-License-Identifier: MIT
# Every target sets itself up first; set-up is a no-op when nothing has changed.

PYTHON ?= python3
BIN := .venv/bin
# Further arguments for pytest (scenarios, test, unit, vm) or the benchmark: make scenarios ARGS='-k mprog -v'
ARGS ?=
# Workers of the main job, and of the harness's own tests
WORKERS ?= 8
UNIT_WORKERS ?= 2
VM_WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup scenarios test test-slow lint unit vm bench clean

help:		## this list
	@sed -n 's/^\([a-z-]*\):.*##[[:space:]]*/  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup:		## host packages, QEMU, virtual environment; all targets below do it first
	@$(PYTHON) harness/bootstrap.py

scenarios: setup	## the main job: every scenario, each in a pristine clone
	$(BIN)/pytest -n $(WORKERS) scenarios/ $(ARGS)

lint: setup	## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

unit: setup	## the harness's tests that need no machine
	$(BIN)/pytest -n $(UNIT_WORKERS) tests/unit $(ARGS)

vm: setup	## the harness's tests on real machines
	$(BIN)/pytest -n $(VM_WORKERS) tests/vm $(ARGS)

test: lint	## lint, then all of the harness's own tests
	$(BIN)/pytest -n $(UNIT_WORKERS) --dist worksteal tests/unit tests/vm $(ARGS)

test-slow: setup	## tests that build kernels: an hour and more; their logs go into .kernrig/slow
	$(BIN)/pytest -m slow tests $(ARGS)

bench: setup	## how fast: medians on the screen, raw values in JSON
	$(BIN)/python -m harness.bench $(ARGS)

clean: setup	## caches of kernels, images and templates (asks first), then what the tools leave here
	$(BIN)/kernrig clean $(ARGS)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
