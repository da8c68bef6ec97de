# All targets use a virtual environment in the checkout, which the first one creates. They need
# Python 3.11 or newer with pip. Every target can be repeated.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUNS   ?= runs
PEERS  := .venv-peers
PEER_TESTS ?= not slow
NEWEST := .venv-newest
CORE_TESTS := $(patsubst %,tests/test_%.py,maml meta_gradient derivative_rules training memory \
  nonfinite evaluation)

.PHONY: help demo test test-all test-peers test-newest lint types format bench bench-peers clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1|/' | column -t -s '|'

$(VENV)/.ready: setup.cfg pyproject.toml constraints.txt
	@echo "creating the environment $(VENV) with pinned versions (a minute or two, once) ..."
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(v < (3, 11) and "Python 3.11 or newer is needed; %s is %d.%d. Try: make PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: $(VENV)/.ready ## compare MAML with its baselines on sinusoids: about a minute
	@$(BIN)/python -m experiments.sinusoid --preset=quick --workdir=$(RUNS)/demo

test: $(VENV)/.ready ## run the tests, except long ones
	@echo "running the tests (some minutes, mostly of compiling) ..."
	@$(BIN)/python -m pytest -n auto --maxprocesses=8 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.ready ## run all tests, those of learning and long ones included
	@MAML_JAX_TEST_OPTIMIZED=1 $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist loadfile \
	  --no-loadscope-reorder -m ''

lint: $(VENV)/.ready ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.ready ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready ## run microbenchmarks on this machine, which should be idle
	@$(BIN)/python -m benchmarks.run

$(PEERS)/.ready: constraints.txt setup.cfg
	@echo "creating the environment $(PEERS) with PyTorch, higher and TorchOpt ..."
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch higher torchopt pytest
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

bench-peers: $(PEERS)/.ready ## compare meta-steps with those of PyTorch libraries
	@$(PEERS)/bin/python -m benchmarks.run --suite=peers
	@$(PEERS)/bin/python -m benchmarks.run --suite=image_peers

test-peers: $(PEERS)/.ready ## check meta-gradients against PyTorch libraries; PEER_TESTS= for all
	@$(PEERS)/bin/python -m pytest -o addopts=-q -m '$(PEER_TESTS)' tests/test_benchmark_peers.py

test-newest: ## the core with the newest JAX that pip offers, in another environment
	@rm -rf build
	@$(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
	  --upgrade-strategy eager '.[experiments]' equinox pillow pytest pytest-timeout pytest-xdist
	@$(NEWEST)/bin/python -c 'import jax, jaxlib, sys; print("Python", sys.version.split()[0], "jax", jax.__version__, "jaxlib", jaxlib.__version__)'
	@$(NEWEST)/bin/python -m pytest -n auto --maxprocesses=8 --dist loadfile $(CORE_TESTS)

clean: ## remove environments, caches and the demo's run
	rm -rf $(VENV) $(PEERS) $(NEWEST) $(RUNS)/demo build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
