# `make run` sets everything up and does the main job; `make test` sets everything up and passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints-py311.txt
RUN_OPTIONS := $(if $(SOURCE),--source '$(SOURCE)') $(if $(SINK),--sink '$(SINK)') $(if $(FROM),--from '$(FROM)') \
	$(if $(TO),--to '$(TO)') $(if $(BBOX),--bbox '$(BBOX)')

.PHONY: run test test-services lint faults setup services stack stack-down clean bench viewers docs

run: setup
	$(BIN)/python -m flows $(RUN_OPTIONS)

# With the tests on real servers, where these are there or can be installed (root, Debian). In as many processes as there are
# cores, at most four; PYTEST_OPTIONS='-n 0' runs all in one.
test: setup
	@$(MAKE) --no-print-directory services || echo "the tests on real servers are skipped: they cannot be installed"
	$(BIN)/python -m pytest -m "" -n logical --maxprocesses 4 $(PYTEST_OPTIONS)

# BENCH='--device cuda --sizes 2048,8192,16384' runs the set of a GPU; the report names commit, machine and versions.
bench: setup
	$(BIN)/pancrafter bench $(BENCH) --out benchmark.json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Runs that are killed with kill -9 and recovered; the last line is the summary, exit status 1 on any loss.
# It goes on where an interrupted campaign with this seed stopped; remove RESULTS to begin anew.
faults: RUNS ?= 200
faults: SEED ?= 1
faults: RESULTS ?= faults-$(SEED).jsonl
faults: setup
	PYTHONPATH=tests $(BIN)/python -m faults --runs $(RUNS) --seed $(SEED) --results $(RESULTS)

# The API reference, from the docstrings; a warning of the generator is an error.
docs: setup
	$(BIN)/python docs/build_api.py build/api

# As root: programs that tests look at products with, Chromium, GDAL's own tools and QGIS.
viewers:
	command -v chromium && command -v gdalbuildvrt && /usr/bin/python3 -c "import osgeo_utils, qgis.core" || \
		(apt-get update && apt-get install -y --no-install-recommends chromium gdal-bin python3-gdal python3-qgis)

setup: $(VENV)/installed

# torch comes first and by pip, which also looks into local wheel folders, so that a CPU build that is at hand is taken.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@echo "setting up $(VENV): one to three minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) torch uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c $(CONSTRAINTS) -e ".[dev]"
	touch $@

# Every server of a real deployment on free ports of this machine, until Ctrl-C or `make stack-down`.
stack: services
	$(BIN)/python -m infra.stack up

stack-down: setup
	$(BIN)/python -m infra.stack down

# The tests that need these servers; they start their own.
test-services: services
	$(BIN)/python -m pytest -m services tests/services $(PYTEST_OPTIONS)

# What the stack needs: Python packages, and as root Debian's PostgreSQL with PostGIS and Ceph's S3 gateway.
services: $(VENV)/services
	$(BIN)/python -m infra.stack install

$(VENV)/services: $(VENV)/installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c $(CONSTRAINTS) -e ".[dev,services]"
	touch $@

clean:
	rm -rf $(VENV) archive archive-sound output state
