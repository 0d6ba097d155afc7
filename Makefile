# Every target runs from a clean checkout and may be run again; `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
DATA ?= .switchyard
# make loadtest
URL ?= http://127.0.0.1:$(PORT)
OUT ?= loadtest-out

# CPU installs must not pull CUDA packages: on Linux x86-64 that takes the +cpu build by name.
ifdef GPU
TORCH ?= torch>=2.11
EXTRA := gpu
else
TORCH ?= torch==2.13.0$(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),+cpu)
EXTRA := cpu
endif
STAMP := $(VENV)/.setup-$(EXTRA)
DEV_STAMP := $(VENV)/.setup-dev

.PHONY: help setup setup-dev up down test test-all lint bench bench-peers loadtest docs

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## Create .venv and install Switchyard (GPU=1: with CUDA; TORCH=...: another torch).

$(VENV)/bin/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Switchyard needs Python 3.11 or newer; name one with PYTHON=")'
	@$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	@if $(BIN)/pip show -q kernels 2>/dev/null; then \
	  echo "the package 'kernels' is installed in $(VENV) and would hide this project's folder of that name:"; \
	  echo "  $(BIN)/pip uninstall kernels"; exit 1; fi
	@echo "installing $(TORCH) and Switchyard with its $(EXTRA) extra (about a minute)"
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install -q '$(TORCH)' || { \
	  echo "no such torch in your package index. CPU builds have an index of their own (pytorch.org, Get Started):"; \
	  echo "  make setup TORCH='torch==2.13.0 --index-url URL'   or take any build: make setup TORCH=torch"; exit 1; }
	@$(BIN)/pip install -q -c constraints.txt -e '.[$(EXTRA),tune]'
	@touch $@

setup-dev: $(DEV_STAMP)

$(DEV_STAMP): $(STAMP)
	@echo "installing the dev extra"
	@$(BIN)/pip install -q -c constraints.txt -e '.[$(EXTRA),dev]'
	@touch $@

up: $(STAMP) ## Start the server, fill an empty knowledge base with docs/, ask one question, serve (ADAPTER=folder: load one).
	@exec $(BIN)/switchyard up --port $(PORT) --data '$(DATA)' $(if $(ADAPTER),--adapter '$(ADAPTER)')

down: ## Stop the server that uses DATA.
	@if [ -x $(BIN)/switchyard ]; then $(BIN)/switchyard stop --data '$(DATA)'; else echo "nothing is installed, so nothing runs"; fi

test: $(DEV_STAMP) ## Run the tests, but for those marked slow or chaos.
	@$(BIN)/pytest -m 'not slow and not chaos'

test-all: $(DEV_STAMP) ## Run every test.
	@$(BIN)/pytest

lint: $(DEV_STAMP) ## Check format, lint and types.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

docs: $(DEV_STAMP) ## Write docs/cli.md and docs/openapi.json from the code.
	@$(BIN)/python -m docs.generate

bench: $(DEV_STAMP) ## Measure the engine, then serving over HTTP (both quick).
	@$(BIN)/switchyard bench generation --quick
	@$(BIN)/switchyard bench serving --quick

bench-peers: $(DEV_STAMP) ## Install what the benches race against.
	@$(BIN)/pip install -q -c constraints.txt -e '.[$(EXTRA),bench]'
	@$(BIN)/python -m loadtest.peers.llama_cpp

loadtest: $(DEV_STAMP) ## Load a running server and write a report (URL=, SHAPE=steps:1,2,4x30s or RATE= and TIME=60s, OUT=folder).
	@$(BIN)/python -m loadtest --url '$(URL)' --out '$(OUT)' \
	  $(if $(SHAPE),--shape '$(SHAPE)') $(if $(RATE),--rate '$(RATE)' -t '$(or $(TIME),60s)') $(LOADTEST_FLAGS)
