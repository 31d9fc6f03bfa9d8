# make demo: text -> a language model at work.  make test: the tests.  make check: what CI checks.
# Everything is installed in .venv on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LLAMA := .venv-llama
TEXT ?=
MINUTES ?= 5
OUT ?= runs/demo

.PHONY: demo test test-slow llama check format clean

demo: $(READY)
	$(BIN)/temaki demo --minutes $(MINUTES) --out $(OUT) $(if $(TEXT),--text "$(TEXT)")

test: $(READY)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)
	-$(MAKE) llama
	$(BIN)/python -m pytest -m slow

llama: $(LLAMA)/.ready

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(LLAMA) .pytest_cache .ruff_cache .import_linter_cache

# The real llama.cpp, which tests/test_llama_cpp.py asks; built from source, for some minutes.
$(LLAMA)/.ready:
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/python -m pip install --quiet "llama-cpp-python==0.3.36" numpy
	touch $(LLAMA)/.ready

# torch is named directly, so that pip finds a CPU build where one is offered.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==2.13.*"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(READY)
