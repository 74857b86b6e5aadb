# `make demo` and `make test` install everything they need first; nothing is installed outside .venv.
# Another Python: make PYTHON=/path/to/python3.12 demo

UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTHON ?=

# Python keeps what it compiles, even where the environment says that it should not: a process that imports PyTorch compiles some 4,500
# files, and tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test-fast test test-all test-numeric test-rounding quantised test-quantised lint types imports check docs bench bench-gpu results screenshots load chaos fuzz audit lock clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## the environment in .venv, every package pinned by hash

# The stamp is written last: an interrupted installation is done again. Without uv on the machine, one is put into the environment.
$(INSTALLED): requirements.lock pyproject.toml
	@PYTHON="$(PYTHON)" VENV="$(VENV)" UV_VERSION="$(UV_VERSION)" deployments/install.sh
	@touch $@

demo: $(INSTALLED)  ## the whole study on this machine: servers, training, comparison
	$(BIN)/clusterlora study run --preset demo

# A process per core, four at the most: each imports PyTorch. One file by hand: .venv/bin/pytest tests/fast/test_gate.py
PYTEST = $(BIN)/pytest --numprocesses=$(PROCESSES) --maxprocesses=4 --dist=worksteal --durations=30
PROCESSES := logical
# Tests of servers wait most of their time: one more than cores, and one more again where they take as long as all others.
TIERS := fast or whole
test: PROCESSES := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + $(if $(findstring all,$(TIERS)),2,1))))

test-fast: $(INSTALLED)  ## tests without a server, a browser or a whole study, two minutes
	$(PYTEST) -m fast

test: $(INSTALLED)  ## what shows that the installation works: those, tests of seconds, and whole studies on real servers, 12 minutes
	$(PYTEST) -m "$(TIERS)"

test-all:  ## every test: those, and browsers, other hosts, PostgreSQL, broken services, less than 20 minutes
	$(MAKE) test TIERS="fast or whole or all"

# Other kernels add in another order, and so do two threads: what passes here because of a last digit fails on somebody's machine. These
# are the kernels of a processor without AVX-512. Two processes with two threads each share two cores: threads that spin for each other
# would take minutes for seconds.
test-numeric: $(INSTALLED)  ## tests that floating-point kernels could decide, with those of an older processor
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive OPENBLAS_THREAD_TIMEOUT=4 \
	  $(PYTEST) -m "numeric and (fast or whole)"

test-rounding: $(INSTALLED)  ## those of make test with the rounding of a processor that nobody has, 20 minutes
	$(PYTEST) -m "fast or whole" --rounding

lint: $(INSTALLED)  ## style and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/typos

types: $(INSTALLED)  ## types
	$(BIN)/pyrefly check --output-format=min-text

imports: $(INSTALLED)  ## import contracts between the layers
	$(BIN)/lint-imports

check: lint types imports docs test-numeric test-all test-quantised  ## everything that CI asks for

# No request leaves the machine, neither here nor from a page. To look at it: .venv/bin/mkdocs serve
docs: $(VENV)/.docs-installed  ## the documentation as a site in site/, with a reference of the modules
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.docs-installed: $(INSTALLED) docs/requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $$(command -v uv || echo $(BIN)/uv) pip install --quiet --require-hashes -r docs/requirements.lock
	@touch $@

quantised: $(VENV)/.quantised-installed  ## what bases in 4 and 8 bits need beside that, 124 MB

$(VENV)/.quantised-installed: $(INSTALLED) quantised.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $$(command -v uv || echo $(BIN)/uv) pip install --quiet --require-hashes -r quantised.lock
	@touch $@

test-quantised: quantised  ## the tests of bases in 4 and 8 bits, a minute
	$(BIN)/pytest tests/fast/test_quantised.py

bench: $(VENV)/.bench-installed  ## comparison with other trainers, about half an hour on an idle machine
	$(BIN)/python -m benchmarks.run --out docs $(BENCH)
	$(BIN)/python -m benchmarks.serving --out docs
	$(BIN)/python -m benchmarks.serving --people 10000 --requests 300 --out docs

# Resumable by part; peers that are not installed are left out with the reason. More time, or some parts alone: BENCH="--minutes 12".
bench-gpu: $(INSTALLED)  ## training and answers on one GPU beside other trainers: docs/gpu.md, 8 minutes
	$(BIN)/python -m benchmarks.gpu --out docs $(BENCH)

# The peers stand beside what is installed already: their lock holds the same versions.
$(VENV)/.bench-installed: $(INSTALLED) benchmarks/requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $$(command -v uv || echo $(BIN)/uv) pip install --quiet --require-hashes -r benchmarks/requirements.lock
	@touch $@

# Resumable: what has finished is not trained again. Speakers of Shakespeare and data sets to look at are named where they lie:
# make results SHAKESPEARE=plays.jsonl SIGNAL="dialogues.jsonl more.jsonl"
results: $(INSTALLED)  ## docs/results.md from studies of all methods and 40 nulls, five hours on two idle cores
	$(BIN)/clusterlora study run --preset mission --config docs/results.toml --controls --no-wait
	$(BIN)/clusterlora study run --preset quick --config docs/nulls.toml --no-wait
	$(BIN)/clusterlora study permute --preset quick --config docs/nulls.toml --times 40
	$(if $(SHAKESPEARE),$(BIN)/clusterlora models fetch smollm2-135m)
	$(if $(SHAKESPEARE),$(BIN)/clusterlora study run --config docs/shakespeare.toml --data $(SHAKESPEARE) --controls --no-wait)
	$(if $(SHAKESPEARE),$(BIN)/clusterlora study run --config docs/shakespeare-likelihood.toml --data $(SHAKESPEARE) --controls --no-wait)
	$(BIN)/python -m benchmarks.results mission $(if $(SHAKESPEARE),shakespeare shakespeare-likelihood) --null nulls $(addprefix --signal ,$(SIGNAL)) --out docs

screenshots: $(INSTALLED)  ## the pictures in docs/screenshots, of a real study in a headless browser, some minutes
	$(BIN)/python -m browser.screenshots

load: $(INSTALLED)  ## eight writers against PostgreSQL, SQLite and MLflow: docs/scale.md, minutes
	$(BIN)/python -m benchmarks.load --out docs $(LOAD)

# Trials are added to docs/reliability.json: a long run can be split, CHAOS="--first-seed 14 --trials 13".
chaos: $(INSTALLED)  ## break studies at random moments for hours; what is recorded is not made again
	$(BIN)/python -m tests.all.chaos.harness --record docs/reliability.json $(CHAOS)

fuzz: $(INSTALLED)  ## loaders against 24,000 odd inputs, configuration against 12,000, model folders against 40,000
	$(BIN)/pytest --hypothesis-profile=long -m "fast or whole" tests/fast/test_fuzz.py tests/fast/test_fuzz_models.py

# It asks the package index about every pinned package; where that knows no advisories, it says which ones were not audited.
audit: $(INSTALLED)  ## known vulnerabilities among the pinned packages
	$$(command -v uv || echo $(BIN)/uv) tool run --quiet pip-audit@2.10.1 --requirement requirements.lock --disable-pip --progress-spinner off

# Versions in the locks stay as long as they satisfy pyproject.toml: make lock UPGRADE=--upgrade for newer ones.
COMPILE = $$(command -v uv || echo $(BIN)/uv) pip compile --universal --generate-hashes --python-version 3.11 --no-header --no-emit-index-url
lock: $(INSTALLED)  ## resolve the dependencies of pyproject.toml, docs/ and docker/
	$(COMPILE) $(UPGRADE) pyproject.toml --group dev -o requirements.lock
	$(COMPILE) $(UPGRADE) --group quantised -c requirements.lock -o quantised.lock
	$(COMPILE) $(UPGRADE) --group docs -c requirements.lock -o docs/requirements.lock
	$(COMPILE) $(UPGRADE) docker/requirements.in -c requirements.lock -o docker/requirements.lock
	$(COMPILE) $(UPGRADE) docker/build.in -c requirements.lock -o docker/build.lock

clean:  ## caches and the environment; studies and servers' data stay
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -prune -exec rm -rf {} +
