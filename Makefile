# `make demo` and `make test` do all the set-up that they need on a machine with Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Exactly so: the CPU build that the reference tests are measured with.
TORCH = torch==2.13.0
# Named, because other tests cannot be collected without torch.
TPU_TESTS = tests/engines/test_pallas_compiler.py tests/experiments/compile_check/test_tpu_compiler.py
TRITON = triton==3.5.0
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help setup setup-test demo test test-exact test-memory test-tpu test-triton test-attacks lint format clean

help:
	@echo "make demo         set up, then answer questions about test scenes, full and pruned"
	@echo "make test         set up, then run the tests (under 10 minutes on 2 cores)"
	@echo "make test-exact   the long exactness run: hundreds of selection problems of every size"
	@echo "make test-memory  a generated 2 GB checkpoint, an image of 10,549 visual tokens: peak memory"
	@echo "make test-tpu     compile kernels and models with the real TPU compiler (no TPU; 700 MB to install)"
	@echo "make test-triton  compile the GPU kernel with Triton and NVIDIA's assembler (no GPU; 600 MB more)"
	@echo "make test-attacks  every fuzzer in full, a second call goes on (ARGS=--help says more)"
	@echo "make lint         ruff and mypy, as CI runs them"
	@echo "make format       ruff, fixing what it can"

# A stamp for each environment: set up again only when pyproject.toml changes.
$(VENV)/.base: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e ".[test]"
	@touch $@ $(VENV)/.base

# An environment of its own: with libtpu installed, JAX looks for a TPU at every start.
$(VENV)-tpu/.tpu: pyproject.toml
	$(PYTHON) -m venv $(VENV)-tpu
	$(VENV)-tpu/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-tpu/bin/python -m pip install --quiet -e ".[tpu]" "pytest>=8" "hypothesis>=6.100"
	@touch $@

$(VENV)-tpu/.triton: $(VENV)-tpu/.tpu
	$(VENV)-tpu/bin/python -m pip install --quiet $(TRITON)
	@touch $@

setup: $(VENV)/.base

setup-test: $(VENV)/.test

demo: setup
	$(BIN)/resprune demo --out demo

test: setup-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not exact and not tpu and not triton"

test-exact: setup-test
	$(BIN)/python -m pytest -m exact -s

test-memory: setup-test
	$(BIN)/python -m resprune_jax.experiments.memory.loading
	$(BIN)/python -m resprune_jax.experiments.memory.large_image

test-tpu: $(VENV)-tpu/.tpu
	JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 $(VENV)-tpu/bin/python -m pytest -m tpu $(TPU_TESTS)

test-triton: $(VENV)-tpu/.triton
	JAX_PLATFORMS=cpu $(VENV)-tpu/bin/python -m pytest -m triton -s tests/engines/test_pallas_triton.py

test-attacks: setup-test
	JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 $(BIN)/python -m tests.attacks $(ARGS)

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-tpu build dist *.egg-info demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
