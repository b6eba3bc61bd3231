# The same commands for people and for CI. Each sets up what it needs, once:
# a virtual environment in .venv, filled with the versions of constraints.txt.
#
# Which torch is installed is pip's to say: with
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu it is the small one without CUDA.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

export FLWR_TELEMETRY_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench bench-page bench-peers chaos soak fuzz

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

setup: .venv/dev  ## install everything that tests, lint and benchmarks need

demo: .venv/demo  ## four hospitals and a server train a model together
	$(BIN)/hanse demo

test: .venv/dev  ## run all tests; ARGS are pytest's, such as ARGS=tests/unit
	$(BIN)/python -m pytest -p tests.counts $(ARGS)

lint: .venv/dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev  ## let ruff rewrite the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev  ## run one benchmark, as in BENCH=accounting; without BENCH, list them
	$(BIN)/python -m tests.benchmarks.run $(BENCH) $(DATA)

bench-page: .venv/dev  ## put what bench has measured into tests/benchmarks/README.md
	$(BIN)/python -m tests.benchmarks.figures.page

PEERS := tests/benchmarks/peers
bench-peers: $(patsubst $(PEERS)/%.txt,.venv-peers/%/installed,$(wildcard $(PEERS)/*.txt))  ## install what benchmarks compare with

# One environment a peer, of the versions that its file pins, whatever else is in it.
.venv-peers/%/installed: $(PEERS)/%.txt
	$(PYTHON) -m venv .venv-peers/$*
	.venv-peers/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

chaos: .venv/dev  ## run RUNS=100 federations through faults drawn from SEED=1, 2, ...
	$(BIN)/python -m tests.faults.chaos --runs $(or $(RUNS),100) --seed $(or $(SEED),1)

soak: .venv/dev  ## run ROUNDS=2000 rounds with faults from SEED=1: nothing may grow
	$(BIN)/python -m tests.faults.chaos.soak --rounds $(or $(ROUNDS),2000) --seed $(or $(SEED),1)

fuzz: .venv/dev  ## RUNS=1000000 damaged inputs over all decoders, or over TARGET=jobs alone
	$(BIN)/python -m tests.fuzz.run --runs $(or $(RUNS),1000000) $(TARGET:%=--target %) \
		$(SEED:%=--seed %) $(INPUT:%=--input %)

$(BIN)/pip:
	$(PYTHON) -m venv .venv

.venv/demo: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e '.[demo]'
	touch $@

# What the tests need includes what the demo needs: it is not installed a second time.
.venv/dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e '.[dev]'
	touch .venv/demo $@
