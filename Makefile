# Everything runs in a virtual environment of the checkout, made on first use; nothing is needed
# before it but Python 3.11 or newer with pip. All targets can be run again at any time.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUNS   ?= runs
PEERS  := .venv-peers
PEER_TESTS ?= not slow

.PHONY: help demo test test-all test-peers lint types format bench bench-peers clean
.DEFAULT_GOAL := help

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1|/' | column -t -s '|'

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	@echo "making the environment $(VENV) and installing pinned versions (a minute or two, once) ..."
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(v < (3, 11) and "Python 3.11 or newer is needed; %s is %d.%d. Try: make PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(VENV)/.ready ## meta-train MAML on sinusoids beside its baselines: about a minute
	@$(BIN)/python -m experiments.sinusoid --preset=quick --workdir=$(RUNS)/demo

test: $(VENV)/.ready ## the tests, but for long ones
	@echo "running the tests (some minutes; most of it is compiling) ..."
	@$(BIN)/python -m pytest -n auto --maxprocesses=8 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.ready ## all tests, those of learning and the long ones included
	@MAML_JAX_TEST_OPTIMIZED=1 $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist loadfile \
	  --no-loadscope-reorder -m ''

lint: $(VENV)/.ready ## format check, linter, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.ready ## put the code into the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready ## microbenchmarks on this machine; nothing else should be running
	@$(BIN)/python -m benchmarks.run

$(PEERS)/.ready: constraints.txt setup.cfg
	@echo "making the environment $(PEERS) with PyTorch, higher and TorchOpt ..."
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch higher torchopt pytest
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

bench-peers: $(PEERS)/.ready ## the same meta-steps in PyTorch libraries, side by side
	@$(PEERS)/bin/python -m benchmarks.run --suite=peers
	@$(PEERS)/bin/python -m benchmarks.run --suite=image_peers

test-peers: $(PEERS)/.ready ## that PyTorch's libraries give our meta-gradients; PEER_TESTS= for all
	@$(PEERS)/bin/python -m pytest -o addopts=-q -m '$(PEER_TESTS)' tests/test_benchmark_peers.py

clean: ## remove environments, caches and the demo's run
	rm -rf $(VENV) $(PEERS) $(RUNS)/demo build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
