PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Compiles the C sources that have changed since the last time.
COMPILE := $(BIN)/python -m fedtiny.engine.runtime.build
RUN_FOLDER := runs/demo

EXTRAS_dev := simulate,dev
EXTRAS_demo := simulate
# An environment with the developer's tools can run the demo as well.
DEMO := $(or $(wildcard $(VENV)/ready-dev),$(VENV)/ready-demo)

.PHONY: setup test demo bench bench-fleet soak lint format

setup: $(VENV)/ready-dev
	@$(COMPILE) >/dev/null

# Many tests start processes: what the first has compiled, the others load.
test: export PYTHONDONTWRITEBYTECODE :=
test: setup
	$(BIN)/pytest -n 2 $(PYTEST_FLAGS)

demo: $(DEMO)
	@$(COMPILE) >/dev/null
	@rm -rf $(RUN_FOLDER)
	$(BIN)/fedtiny simulate simulations/demo.toml --out $(RUN_FOLDER)
	@echo "The report: $(RUN_FOLDER)/report.html"

bench: $(DEMO)
	@$(COMPILE) >/dev/null
	$(BIN)/python benchmarks/bench.py

bench-fleet: setup
	$(BIN)/python benchmarks/fleet.py

soak: setup
	$(BIN)/python benchmarks/soak.py 30 200
	FEDTINY_FUZZ=1000000 $(BIN)/pytest tests/wire/test_fuzz.py
	FEDTINY_LIVE_FUZZ=200000 $(BIN)/pytest tests/fleet/test_live_fuzz.py --timeout 600

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

$(BIN)/python:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "fedtiny needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 1; }

# The build tools are pinned like the rest, so the build is not isolated from them.
$(VENV)/ready-%: pyproject.toml setup.py constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[$(EXTRAS_$*)]'
	@touch $@
