# make demo      the main job on the built-in organism
# make demo-real the same on a language model, SmolLM2 (a quarter of an hour)
# make test      lint and all tests, of types too, but those that download (make test-download)
# make test-fast lint, types and the tests that take seconds
# make docs      the site, in site/index.html; notebooks are run where they have changed
# make notebook  the notebooks in JupyterLab
# make build     the wheel and the source archive, in dist/
# Each does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# on Linux, huge pages for memory: tiny models train and sample in four fifths of the time (docs/benchmarks.md)
demo test test-fast: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
READY := $(VENV)/.ready

.PHONY: setup demo demo-real test test-fast test-download style lint docs notebook build clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "em_interp needs Python 3.11 to 3.14; '$(PYTHON)' was not found (try make PYTHON=python3.11)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v[:2] < (3, 15))' || { echo "em_interp needs Python 3.11 to 3.14; $$($(PYTHON) --version) was found (try make PYTHON=python3.11)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/em-interp demo --out checkpoints/demo --resume

demo-real: $(READY)
	$(BIN)/em-interp demo --real --out checkpoints/demo-real --resume

test: $(READY) style
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-fast: $(READY) lint
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m 'not slow and not browser and not download and not vllm'

test-download: $(READY)
	$(BIN)/python -m pytest -m download

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open site/index.html"

notebook: $(VENV)/.notebook
	$(BIN)/jupyter lab --notebook-dir .

$(VENV)/.notebook: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[notebook]'
	@touch $@

build: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf $(VENV) .cache build dist site checkpoints/demo
