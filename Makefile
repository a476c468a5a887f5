# What is done by hand and by the gate. Needs GNU make and Python 3.11 or newer; all else comes into .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check --no-input install --constraint constraints.txt
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint format constraints bench faults chaos image-check clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1              /; s/^\([a-z].\{12\}\)  */\1/p' Makefile

install: $(INSTALLED)  ## create .venv with the packages of pyproject.toml, in the versions of constraints.txt

demo: install  ## run an example on its own server, to its end
	@$(BIN)/python -m examples.demo

# In the order of names: the short files come last.
test: install  ## run the tests, two files at a time; ARGS="-k name" selects, one at a time
	@$(BIN)/python -m pytest $(or $(ARGS),--numprocesses 2 --dist loadfile --no-loadscope-reorder)

check: lint test  ## everything that the gate runs

lint: install  ## style, types, import rules, dependencies: all of them, whichever fails
	@status=0; for step in 'ruff check .' 'ruff format --check --output-format concise .' mypy lint-imports 'deptry .'; do \
		echo "$$step"; $(BIN)/$$step || status=1; \
	done; exit $$status

format: install  ## fix what can be fixed automatically
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

constraints: install  ## pin the newest versions that pyproject.toml allows
	@$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --no-emit-index-url --no-annotate --no-header \
		--group dev pyproject.toml --output-file constraints.txt

bench: install  ## measure; QUICK=1 is a smoke test, RIVALS=1 compares other servers, ARGS names workloads
	@$(BIN)/python -m bench$(if $(RIVALS),.rivals) $(if $(QUICK),--quick) $(ARGS)

faults: install  ## the tests that are too long for the gate: crash points, state machines, Postgres, rolling restarts
	@$(BIN)/python -m pytest -m slow $(ARGS)

chaos: install  ## inject faults under random load for MINUTES, and judge the result; ARGS="--seed N" repeats a run
	@$(BIN)/python -m chaos --minutes $(or $(MINUTES),5) $(ARGS)

image-check: install  ## build the image with podman and run it: root, some minutes, see deploy/README.md
	@$(BIN)/python -m tests.deploy.check_image

clean:  ## remove generated files
	@rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache demo-output tests/clients/node_modules
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is made last: an install that was interrupted is done again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	@echo 'making .venv: a minute or two, once'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) 'pip>=25.1'
	@$(PIP) --group dev
	@$(PIP) --no-build-isolation --editable .
	@touch $@
