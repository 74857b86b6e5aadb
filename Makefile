# `make demo` and `make test` install everything they need first; nothing is installed outside .venv.
# Another Python: make PYTHON=/path/to/python3.12 demo

UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTHON ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types imports check bench lock clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## the environment in .venv, every package pinned by hash

# The stamp is written last: an interrupted installation is done again. Without uv on the machine, one is put into the environment.
$(INSTALLED): requirements.lock pyproject.toml
	@PYTHON="$(PYTHON)" VENV="$(VENV)" UV_VERSION="$(UV_VERSION)" deployments/install.sh
	@touch $@

demo: $(INSTALLED)  ## the whole study on this machine: servers, training, comparison
	$(BIN)/clusterlora study run --preset demo

test: $(INSTALLED)  ## all tests
	$(BIN)/pytest

lint: $(INSTALLED)  ## style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(INSTALLED)  ## types
	$(BIN)/basedpyright

imports: $(INSTALLED)  ## import contracts between the layers
	$(BIN)/lint-imports

check: lint types imports test  ## everything that CI asks for

bench: $(VENV)/.bench-installed  ## comparison with other trainers, about half an hour on an idle machine
	$(BIN)/python -m benchmarks.run --out docs $(BENCH)

# The peers stand beside what is installed already: their lock holds the same versions.
$(VENV)/.bench-installed: $(INSTALLED) benchmarks/requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $$(command -v uv || echo $(BIN)/uv) pip install --quiet --require-hashes -r benchmarks/requirements.lock
	@touch $@

lock:  ## resolve the dependencies anew
	uv pip compile pyproject.toml --group dev --universal --generate-hashes --python-version 3.11 \
	  -o requirements.lock --no-header --no-emit-index-url

clean:  ## caches and the environment; studies and servers' data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -prune -exec rm -rf {} +
