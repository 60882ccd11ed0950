# `make help` lists the targets. Everything that they need goes into .venv; nothing else is touched.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet

# Compiled kernels stay inside the checkout, and so do the caches of what compiles them.
export OPTGEN_CACHE_DIR ?= $(CURDIR)/.cache/optgen
export TRITON_CACHE_DIR ?= $(CURDIR)/.cache/triton
export TORCHINDUCTOR_CACHE_DIR ?= $(CURDIR)/.cache/inductor
export MPLCONFIGDIR ?= $(CURDIR)/.cache/matplotlib

# Two threads a test process, whatever the machine, so that the parallel path is tested; they sleep
# while they wait, because there are as many test processes as WORKERS says.
THREADS := OMP_NUM_THREADS=2 NUMBA_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE
# The simulated GPU is skipped without gcc and Python.h, but not here.
export OPTGEN_REQUIRE_SIMULATED_GPU ?= 1
PYTEST := $(THREADS) $(BIN)/python -m pytest -n $(WORKERS)
# Triton reads TRITON_INTERPRET when it decorates a kernel: one process cannot both compile and interpret.
INTERPRET := TRITON_INTERPRET=1
INTERPRETER_TESTS := tests/interpreter tests/gpu/test_gpu.py
# The trainers are slow to import and are a run of their own.
INTEGRATION_TESTS := tests/integration
OTHER_TESTS := tests --ignore=tests/interpreter --ignore=$(INTEGRATION_TESTS)

.DEFAULT_GOAL := help
.PHONY: help .venv demo test test-all test-integration test-gpu rule lint format docs bench clean distclean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z.-]*\):.*  ## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 26

.venv: .venv/installed  ## set up the environment, as constraints.txt pins it

# One pip command, so that nothing can bring in another torch than the pinned one.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "optgen needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	    echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it needs the package python3-venv." >&2; exit 1; }
	$(PIP_INSTALL) -c constraints.txt -e '.[cpu,demo,docs,test,integration,lint]'
	@touch $@

demo: .venv/installed  ## show what optgen does, in a terminal
	$(BIN)/optgen demo

test: .venv/installed  ## run the suite
	$(PYTEST) $(OTHER_TESTS) -m "not full and not gpu"
	$(INTERPRET) $(PYTEST) $(INTERPRETER_TESTS) -m "not full"

test-all: .venv/installed  ## run the full matrix of rules, dtypes, shapes and options
	$(PYTEST) $(OTHER_TESTS) -m "full and not gpu"
	$(INTERPRET) $(PYTEST) $(INTERPRETER_TESTS) -m full

test-integration: .venv/installed  ## train with Hugging Face, Lightning, Accelerate and torch.compile
	$(PYTEST) $(INTEGRATION_TESTS)

test-gpu: .venv/installed  ## run the tests that need a GPU
	$(BIN)/python -m pytest tests --ignore=$(INTEGRATION_TESTS) -m gpu

# NAME from the command line only: some systems have one in the environment.
rule: .venv/installed  ## NAME=my_rule: start a shipped rule, and write what is generated for it
	@test "$(origin NAME)" = "command line" || { echo "Name the rule: make rule NAME=my_rule" >&2; exit 1; }
	$(BIN)/python -m optgen new --shipped '$(NAME)'

lint: .venv/installed  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/installed  ## rewrite the source in style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: .venv/installed  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/installed  ## measure speed, latency and memory on this machine
	$(BIN)/python benchmarks/run.py

clean:  ## remove what builds and tests leave behind
	rm -rf .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist site demo.png
	find optgen tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf .venv
