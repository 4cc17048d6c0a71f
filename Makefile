# `make demo` and `make test` do all the set-up that they need on a machine with Python 3.11+ and make.
# Another interpreter: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Exactly so: the build that the reference tests are measured with.
TORCH = torch==2.13.0
# Named, because other tests cannot be collected without torch.
TPU_TESTS = tests/engines/test_pallas_compiler.py tests/experiments/compile_check/test_tpu_compiler.py
GPU_TESTS = tests/experiments/compile_check/test_gpu_compiler.py
# Markers of tests that have targets of their own.
ELSEWHERE = deep or exact or serve or package or harness or browser or tpu or triton or gpu or gpucompile or examples or docs
# Without torch, in all less than three minutes, and every dependency at work in one of them.
KERNELS = tests/engines/test_pallas.py
TRAINING = tests/experiments/pocket/test_pocket_training.py
CORE_TESTS = tests/core tests/models/checkpoint/test_hub.py tests/models/prompts/test_chat_files.py \
	tests/models/families/test_qwen_processing.py tests/models/images/test_image_files.py \
	tests/experiments/test_cli.py tests/test_nouns.py tests/test_packaging.py \
	$(TRAINING)::test_training_goes_on_bit_by_bit_after_it_was_stopped \
	$(KERNELS)::test_the_gpu_kernel_lowers_to_one_triton_launch \
	$(KERNELS)::test_questions_about_one_image_share_its_gram_matrix
TRITON = triton==3.5.0
LMMS_EVAL = lmms-eval==0.7.3
# What drives the system's Chromium, and what looks for faults of access in it.
BROWSER = playwright==1.65.2 axe-playwright-python==0.1.8
UV = uv==0.13.9
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Programs that tests have compiled, for the next target or run (tests/conftest.py): a second `make
# test` takes less than half of the time.
export RESPRUNE_TEST_PROGRAMS ?= $(CURDIR)/.test-programs
# What is asked there is what these compilers make today.
test-tpu test-gpu-compile test-triton test-gpu: export RESPRUNE_TEST_PROGRAMS =

.PHONY: help setup setup-test demo test test-deep test-core test-newest test-oldest test-exact test-memory \
	test-package test-serve test-explore test-harness test-tpu test-gpu-compile gpu-check-all test-triton test-gpu test-attacks test-docs lock lint \
	format docs clean examples-wheel test-examples examples

help:
	@echo "make demo         set up, then answer questions about test scenes, full and pruned"
	@echo "make test         set up, then run the tests (under 10 minutes on 2 cores, 5 the next time)"
	@echo "make test-deep    what repeats or deepens these: more families, planted faults, long inputs (17 minutes behind make test)"
	@echo "make test-core    every dependency and family once, without torch (under 3 minutes)"
	@echo "make test-newest  the same with the newest version of every dependency that is allowed"
	@echo "make test-oldest  the same with the oldest versions that pyproject.toml declares"
	@echo "make test-exact   the long exactness run: hundreds of selection problems of every size"
	@echo "make test-serve   OpenAI's client against a real resprune serve: answers, floods, bad clients (3 minutes)"
	@echo "make test-docs    every command and Python block of README.md and docs/"
	@echo "make test-explore  the pages of resprune explore in headless Chromium (installed if missing, as root with apt)"
	@echo "make test-examples  the notebooks of examples/, from the wheel, each in an empty folder (under 3 minutes)"
	@echo "make examples     run them, and write them with what they say now"
	@echo "make test-harness  lmms-eval runs the plug-in (2 GB to install; under 10 minutes)"
	@echo "make test-package  sdist, wheel, an empty environment: doctor, demo and explore run there (3 minutes)"
	@echo "make test-memory  a generated 2 GB checkpoint, an image of 10,549 visual tokens: peak memory"
	@echo "make test-tpu     compile kernels and models with the real TPU compiler (no TPU; 700 MB to install)"
	@echo "make test-gpu-compile  LLaVA-1.5-7B through XLA's compiler for an H100: launches, memory (no GPU; 400 MB more)"
	@echo "make gpu-check-all  every model and selection engine for H100, H200 and A100, as JSON in gpu-check/ (long)"
	@echo "make test-triton  compile the GPU kernel with Triton and NVIDIA's assembler (no GPU; 600 MB more)"
	@echo "make test-gpu     on a machine with a GPU that JAX sees: certificates, races, float32 (minutes)"
	@echo "make test-attacks  every fuzzer in full, a second call goes on (ARGS=--help says more)"
	@echo "make docs         the documentation site in site/, and every link of README.md and docs/ checked (a minute)"
	@echo "make lock         renew locks/: the newest allowed versions, and the oldest"
	@echo "make lint         ruff and mypy, as CI runs them"
	@echo "make format       ruff, fixing what it can"
	@echo "Another Python:   make test PYTHON=python3.13 VENV=.venv-3.13"

# An environment from a lock: every version pinned and its hash compared; then this project, built
# with the lock's setuptools. ONE_BY_ONE is for CI, which makes two at a time: each of these builds
# writes the same egg-info.
define from_lock
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --require-hashes -r $(2)
	$(ONE_BY_ONE) $(1)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
endef

# A stamp for each environment: set up again only when the lock or pyproject.toml changes.
$(VENV)/.base: pyproject.toml locks/run.txt
	$(call from_lock,$(VENV),locks/run.txt)
	@touch $@

$(VENV)/.core: pyproject.toml locks/test.txt
	$(call from_lock,$(VENV),locks/test.txt)
	@touch $@ $(VENV)/.base

# torch first: no build of it can stand in a lock for every machine (.ci/torch.py says more).
$(VENV)/.test: pyproject.toml locks/test.txt .ci/torch.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/torch.py $(TORCH)
	$(call from_lock,$(VENV),locks/test.txt)
	@touch $@ $(VENV)/.core $(VENV)/.base

# An environment of its own: with libtpu installed, JAX looks for a TPU at every start.
$(VENV)-tpu/.tpu: pyproject.toml locks/tpu.txt
	$(call from_lock,$(VENV)-tpu,locks/tpu.txt)
	@touch $@

$(VENV)-tpu/.triton: $(VENV)-tpu/.tpu
	$(VENV)-tpu/bin/python -m pip install --quiet --no-deps $(TRITON)
	@touch $@

# Likewise: with the plug-in installed, JAX looks for a GPU.
$(VENV)-gpu/.gpu: pyproject.toml locks/gpu.txt
	$(call from_lock,$(VENV)-gpu,locks/gpu.txt)
	@touch $@

# torch first, as below .test; lmms-eval without what other models need (locks/harness.in says more).
# --no-deps also for the lock: pip finds no hash for typepy[datetime], which is the typepy of the lock.
$(VENV)-harness/.harness: pyproject.toml locks/harness.txt .ci/torch.py Makefile
	test -x $(VENV)-harness/bin/python || $(PYTHON) -m venv $(VENV)-harness
	$(VENV)-harness/bin/python .ci/torch.py $(TORCH)
	$(VENV)-harness/bin/python -m pip show --quiet torch || { echo "lmms-eval needs torch" >&2; exit 1; }
	$(VENV)-harness/bin/python -m pip install --quiet --no-deps --require-hashes -r locks/harness.txt
	$(VENV)-harness/bin/python -m pip install --quiet --no-deps $(LMMS_EVAL)
	$(ONE_BY_ONE) $(VENV)-harness/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# Likewise of its own: what is installed beside a lock stays out of the environment of the others.
$(VENV)-explore/.browser: pyproject.toml locks/test.txt Makefile
	$(call from_lock,$(VENV)-explore,locks/test.txt)
	$(VENV)-explore/bin/python -m pip install --quiet $(BROWSER)
	@touch $@

# Not editable, as users have it: nothing in a notebook may look into this folder. Built from a copy:
# other targets may build here meanwhile, and build/ would keep files that are gone.
$(VENV)-examples/.lock: locks/examples.txt
	test -x $(VENV)-examples/bin/python || $(PYTHON) -m venv $(VENV)-examples
	$(VENV)-examples/bin/python -m pip install --quiet --require-hashes -r locks/examples.txt
	@touch $@

examples-wheel: $(VENV)-examples/.lock
	rm -rf $(VENV)-examples/source
	mkdir $(VENV)-examples/source
	cp -RP pyproject.toml setup.py README.md LICENSE resprune_jax models experiments $(VENV)-examples/source
	$(VENV)-examples/bin/python -m pip install --quiet --no-deps --no-build-isolation --force-reinstall \
		$(VENV)-examples/source
	rm -rf $(VENV)-examples/source

$(VENV)-oldest/.core: pyproject.toml locks/oldest.txt
	$(call from_lock,$(VENV)-oldest,locks/oldest.txt)
	@touch $@

# Neither this project nor anything that it needs: the site is made from sources that nobody imports.
$(VENV)-docs/.docs: locks/docs.txt
	test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --require-hashes -r locks/docs.txt
	@touch $@

$(VENV)-lock/.uv: Makefile
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet $(UV)
	@touch $@

setup: $(VENV)/.base

setup-test: $(VENV)/.test

demo: setup
	$(BIN)/resprune demo --out demo

test: setup-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not ($(ELSEWHERE))"

# What repeats a test of the above for one more family or engine, or goes further.
test-deep: setup-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m deep

test-core: $(VENV)/.core
	$(BIN)/python -m pytest $(CORE_TESTS)

test-oldest: $(VENV)-oldest/.core
	$(VENV)-oldest/bin/python -m pytest $(CORE_TESTS)

# Resolved anew in every run.
test-newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet -e ".[test]"
	$(VENV)-newest/bin/python -m pytest $(CORE_TESTS)

test-exact: setup-test
	$(BIN)/python -m pytest -m exact -s

# The build tools are those of locks/test.txt; what is installed beside the wheel, locks/run.txt's.
test-package: $(VENV)/.core
	JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m package -s tests/package tests/experiments/doctor

# One process: the tests of a session share a server.
test-serve: setup-test
	JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m serve tests/experiments/serve

test-docs: setup-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m docs tests/docs

test-memory: setup-test
	$(BIN)/python -m resprune_jax.experiments.memory.loading
	$(BIN)/python -m resprune_jax.experiments.memory.large_image

test-tpu: $(VENV)-tpu/.tpu
	JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 $(VENV)-tpu/bin/python -m pytest -m tpu $(TPU_TESTS)

test-gpu-compile: $(VENV)-gpu/.gpu
	JAX_PLATFORMS=cpu $(VENV)-gpu/bin/python -m pytest -m gpucompile -s $(GPU_TESTS)

GPU_CHECK = JAX_PLATFORMS=cpu $(VENV)-gpu/bin/resprune gpu-check --json --card h100 h200 a100
# All of it, also behind what does not fit.
gpu-check-all: $(VENV)-gpu/.gpu
	mkdir -p gpu-check
	status=0; $(GPU_CHECK) --selection > gpu-check/selection.json || status=1; \
	for model in llava-1.5-7b llava-next-7b llava-onevision-7b qwen2-vl-7b qwen2.5-vl-7b; do \
		$(GPU_CHECK) --model $$model --batch 1 32 > gpu-check/$$model.json || status=1; \
	done; exit $$status

test-triton: $(VENV)-tpu/.triton
	JAX_PLATFORMS=cpu $(VENV)-tpu/bin/python -m pytest -m triton -s tests/engines/test_pallas_triton.py

test-harness: $(VENV)-harness/.harness
	JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 $(VENV)-harness/bin/python -m pytest -m harness tests/harness

# Into the environment belongs the JAX of the GPU, which no lock for every machine can hold:
# .venv/bin/python -m pip install "jax[cuda13]==<the version that is there>".
test-gpu: setup-test
	$(BIN)/python -m pytest -m gpu -s tests/gpu

test-explore: $(VENV)-explore/.browser
	.ci/chromium
	JAX_PLATFORMS=cpu $(VENV)-explore/bin/python -m pytest -m browser -s tests/experiments/explore

# Links first: those of README.md and the like, which mkdocs does not see, and paths of files in code.
docs: $(VENV)-docs/.docs
	$(VENV)-docs/bin/python -m docs.tools.links
	NO_MKDOCS_2_WARNING=true $(VENV)-docs/bin/python -m mkdocs build --strict

test-examples: examples-wheel
	$(VENV)-examples/bin/python -m pytest -m examples -s tests/examples

examples: examples-wheel
	$(VENV)-examples/bin/python -m tests.examples $(ARGS)

test-attacks: setup-test
	JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 $(BIN)/python -m tests.attacks $(ARGS)

# One lock serves Python 3.11 and all later ones: where versions differ, lines carry markers. What
# `make demo` and the TPU environment install are parts of what the tests ran with.
PIN = $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-annotate --custom-compile-command "make lock" --no-config --no-sources --upgrade
COMPILE = $(PIN) pyproject.toml

lock: $(VENV)-lock/.uv
	$(COMPILE) --extra test locks/torch.in -o locks/test.txt
	$(COMPILE) --extra build -c locks/test.txt -o locks/run.txt
	$(COMPILE) --extra test --extra tpu -c locks/test.txt -o locks/tpu.txt
	$(COMPILE) --extra test --extra gpu-check -c locks/test.txt -o locks/gpu.txt
	sed '/^filelock==/,/[^\\]$$/d' locks/test.txt > $(VENV)-lock/but-filelock.txt
	$(COMPILE) --extra build locks/harness.in -c $(VENV)-lock/but-filelock.txt \
		--override locks/no-torch.in --no-emit-package torch -o locks/harness.txt
	$(COMPILE) --extra build locks/examples.in -c locks/test.txt -o locks/examples.txt
	$(COMPILE) --extra test --resolution lowest-direct -o locks/oldest.txt
	$(PIN) locks/docs.in -o locks/docs.txt

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf site $(VENV) $(VENV)-tpu $(VENV)-gpu $(VENV)-harness $(VENV)-explore $(VENV)-docs $(VENV)-examples $(VENV)-oldest $(VENV)-newest $(VENV)-lock build dist \
		*.egg-info demo .test-programs .pytest_cache .mypy_cache .ruff_cache .hypothesis
