# A target per developer action; CI (.ci/run) calls just these. `make help` lists them.
BIN := .venv/bin
SHELL := /bin/bash

# Ray starts a dozen Pythons for a job: each would compile all that it imports, every time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup browser demo test soak lint docs bench reference constraints clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## make .venv with the tested versions (quick when it is there)
	@scripts/setup

browser: ## Chromium for the tests of pages, which are skipped without it (Debian, as root)
	@scripts/browser

demo: setup ## real pictures, captions and speech: embedded, stored, searched, learned from, and nothing done twice
	@$(BIN)/mmray demo $(if $(DATA),--data '$(DATA)')

test: setup browser ## unit, ray and e2e tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -n logical --maxprocesses 4
	@$(BIN)/python -m pytest tests/ray -m "not soak" -n 2
	@$(BIN)/python -m pytest tests/e2e -m "not soak" -n 2

soak: setup ## hundreds of random kills, deadly samples, nodes that come: every sample and row once
	@$(BIN)/python -m pytest tests/soak tests/ray tests/e2e -m soak --timeout 0 $(ARGS)

lint: setup ## ruff, mypy strict, the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

docs: setup ## build the documentation strictly into site/
	@$(BIN)/python docs/generate.py --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup ## ratios against peers on this machine
	@$(BIN)/python -m benchmarks $(ARGS)

reference: setup ## write docs/reference.md from the schemas and the command line
	@$(BIN)/python docs/generate.py

constraints: ## write constraints.txt from what .venv holds
	@scripts/constraints

clean: ## remove what the tools made, .venv excepted
	@rm -rf build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
