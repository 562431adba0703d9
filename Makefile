# The commands of this repository; `make help` lists them.
# PYTHON chooses the interpreter that .venv is made with (3.11 or newer): make install PYTHON=python3.12

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ROOMS  := benchmarks connections demo feast_plugins feature_repo infra ingestion serving_client tally tally_cli training
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long test-faults lint format bench notebook up down lock clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

# UV_SYSTEM_CERTS: uv trusts what pip trusts, the machine's own certificates, which a company's proxy may have added to.
install: $(VENV)/.installed ## make .venv with everything, at the versions of requirements.lock

$(VENV)/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "Tally needs Python 3.11 or newer, $(PYTHON) is %d.%d; choose another with PYTHON=..." % v[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock uv && \
		UV_SYSTEM_CERTS=1 $(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements.lock --editable . || \
		{ echo "uv cannot install here; pip does the same, slower"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock --editable .; }
	@touch $@

demo: install ## real flights through the whole system, ending with the count of values that differ
	@$(BIN)/python -m demo $(ARGS)

test: install ## all tests, on servers that they start themselves; ARGS="-k name" is passed on to pytest
	@$(BIN)/python -m pytest $(ARGS)

test-long: install ## the property tests with 2,000 random examples each; EXAMPLES=100000 for hours, ARGS as for test
	@$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=long $(ARGS)

test-faults: install ## hurt workers, brokers, servers and networks on purpose; ARGS="--rounds 100" is the long run
	@$(BIN)/python -m pytest tests/faults $(ARGS)

lint: install ## style, formatting and strict types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(wildcard $(ROOMS))

format: install ## put the code in its house style, fixing what can be fixed
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: install ## measure beside other systems; writes benchmarks/results.json
	@$(BIN)/python -m benchmarks $(ARGS)

notebook: install ## run notebooks/training_set.ipynb in place
	@$(BIN)/jupyter execute --inplace notebooks/training_set.ipynb

up: install ## start the embedded Redis, Kafka and Snowflake emulator
	@$(BIN)/tally up $(ARGS)

down: install ## stop what `make up` started; ARGS=--wipe deletes its data too
	@$(BIN)/tally down $(ARGS)

lock: install ## resolve requirements.lock anew from pyproject.toml, keeping what still fits
	@$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.lock

clean: ## delete .venv, caches and build output; data of embedded services stays until `make down ARGS=--wipe`
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
