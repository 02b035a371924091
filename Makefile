# make            what there is
# make demo       see it work
# make test       run all tests
# make bench      time it beside 0.19.0

VENV = .venv
PYTHON =#       the newest that is found; make PYTHON=/usr/bin/python3.11 takes another one for a new venv
BENCH = --old#  what to measure: see python -m benchmarks --help
PYTEST =#       arguments for pytest: make test PYTEST="-k journal -x"
JOBS = 4#       tests at once: they wait more than they work; make test JOBS=0 runs them in one process, for a debugger

DEFINES = pyproject.toml setup.py trollmoves/__init__.py $(wildcard bin/*.py)
.DEFAULT_GOAL = help
.PHONY: help demo test bench lint clean

help:
	@echo "make demo    a server, a client and 1,500 satellite files on this machine, half a minute"
	@echo "make test    all tests;  make test PYTEST='-k journal'  some of them"
	@echo "make bench   how fast it is on this machine, beside 0.19.0; make bench BENCH='burst steady'  some of it"
	@echo "make lint    format, style and types"
	@echo "make clean   remove what these made"

demo: $(VENV)/.demo
	@$(VENV)/bin/python examples/demo/demo.py

test: $(VENV)/.dev
	@.ci/setup packages
	@NEWEST_PYTHON="$$(.ci/setup python newest)" $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST)

bench: $(VENV)/.bench
	@.ci/setup packages
	@NEWEST_PYTHON="$$(.ci/setup python newest)" $(VENV)/bin/python -m benchmarks $(BENCH)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy

clean:
	rm -rf .venv* .demo .end-to-end .tox build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp is as old as the last installation with these extras.
$(VENV)/.demo: $(DEFINES)
	@.ci/setup venv $(VENV) all $(PYTHON)
	@touch $@

$(VENV)/.dev: $(DEFINES)
	@.ci/setup venv $(VENV) dev $(PYTHON)
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: $(DEFINES)
	@.ci/setup venv $(VENV) dev,bench $(PYTHON)
	@touch $@ $(VENV)/.demo $(VENV)/.dev
