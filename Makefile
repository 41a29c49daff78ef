# Two commands matter: `make demo` and `make test`. They need Python >= 3.11, make and a package registry.
#
# On Linux a plain torch install pulls CUDA. For the much smaller CPU build:
#     make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON      ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
                 $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
TORCH_INDEX ?=
VENV        := .venv
BIN         := $(VENV)/bin
PIP         := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint soak bench clean

demo: $(VENV)/run.stamp
	$(BIN)/fairlead demo

test: lint
	$(BIN)/python -m pytest -m "not soak"

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m soak

bench: $(VENV)/dev.stamp
	@for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python -m "benchmarks.$$(basename $$b .py)" || exit 1; done

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/run.stamp: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Fairlead needs Python 3.11 or newer; none was found. Say where: make PYTHON=/path/to/python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); torch is the large one ..."
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch)
	$(PIP) -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) -e '.[dev]'
	touch $@
