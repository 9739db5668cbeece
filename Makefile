# Needs only make and Python >= 3.11: every target builds what it lacks. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
BENCH ?= decode

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
OLDEST := .venv-oldest
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip --disable-pip-version-check
MODEL_FILES := configuration_plt.py modeling_plt.py

.DEFAULT_GOAL := help
.PHONY: run test test-slow test-oldest test-vllm lint format bench train clean help

run: $(RUNTIME)  ## complete a piece of Python with the small model; ARGS='--prompt "def f(" --num-loops 1'
	$(BIN)/python examples/complete.py $(ARGS)

test: $(DEV)  ## run the tests that are not slow
	$(BIN)/pytest tests -m "not slow" $(ARGS)

test-slow: $(DEV)  ## run the slow tests
	$(BIN)/pytest tests -m slow $(ARGS)

test-oldest: $(OLDEST)/constraints.txt  ## run the tests with the oldest Transformers that is supported
	$(MAKE) test VENV=$(OLDEST) CONSTRAINTS=$<

test-vllm: $(VLLM)/.installed  ## run the tests of the vLLM plugin, in an environment of its own
	$(VLLM)/bin/python -m pytest tests/vllm_plugin -m "not slow" $(ARGS)

lint: $(VENV)/mlinter-rules.toml  ## check style, formatting and the structure of the model files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mlinter --no-progress --no-cache --rules-toml $< $(MODEL_FILES)

format: $(DEV)  ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)  ## measure BENCH=decode, prefill, memory, training, full_size, profile_decode or rehearsal; plot draws
	$(BIN)/python -m iquest_plt.benchmarks.$(BENCH) $(ARGS)

train: $(DEV)  ## train the small model; goes on where an earlier run stopped
	$(BIN)/python -m iquest_plt.training.small $(ARGS)

clean:  ## remove build leftovers and caches (.venv stays)
	rm -rf build dist iquest_plt.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

$(OLDEST)/constraints.txt: constraints-oldest.txt constraints.txt
	@mkdir -p $(@D)
	awk -F== 'NR == FNR { pinned[$$1] } NR == FNR || !($$1 in pinned)' $^ > $@
