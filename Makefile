# make            list the targets
# make demo       a server and a client at work
# make test       all tests
# make test-fast  unit and integration tests
# make coverage   all tests with coverage, child processes included
# make docs       the documentation as a site, in build/site
# make man        write the man pages of all commands
# make bench      measure the speed, compared with 0.19.0

VENV = .venv
PYTHON =#       default: the newest one; make PYTHON=/usr/bin/python3.11 uses another one for a new venv
BENCH = --old#  benchmarks to run: see python -m benchmarks --help
PYTEST =#       arguments for pytest: make test PYTEST="-k journal -x"
JOBS = 4#       concurrent tests, which mostly wait; make test JOBS=0 runs them in one process, for a debugger
FAST = trollmoves/tests/unit trollmoves/tests/integration
PROSE = code docs tests#  what make lint checks

DEFINES = pyproject.toml setup.py trollmoves/__init__.py $(wildcard bin/*.py)
RUN_TESTS = -m pytest -n $(JOBS) --dist worksteal
.DEFAULT_GOAL = help
.PHONY: help demo test test-fast coverage docs bench lint man clean

help:
	@echo "make demo       a server, a client and 1,500 satellite files on this machine, half a minute"
	@echo "make test       all tests;  make test PYTEST='-k journal'  some tests"
	@echo "make test-fast  unit and integration tests"
	@echo "make coverage   all tests with branch coverage, child processes included; prints the report"
	@echo "make docs       the documentation as a site, in build/site; broken links are errors"
	@echo "make bench      speed on this machine, compared with 0.19.0;  make bench BENCH='burst steady'  some benchmarks"
	@echo "make lint       format, style, types and prose"
	@echo "make man        write the man pages of all commands to man/"
	@echo "make clean      remove the files that these targets create"

demo: $(VENV)/.demo
	@$(VENV)/bin/python examples/demo/demo.py

test: $(VENV)/.dev
	@.ci/setup packages
	@NEWEST_PYTHON="$$(.ci/setup python newest)" $(VENV)/bin/python $(RUN_TESTS) $(PYTEST)

test-fast: $(VENV)/.dev
	@.ci/setup packages
	@NEWEST_PYTHON="$$(.ci/setup python newest)" $(VENV)/bin/python $(RUN_TESTS) $(FAST) $(PYTEST)

coverage: $(VENV)/.dev
	@.ci/setup packages
	@rm -rf .coverage && mkdir .coverage
	@NEWEST_PYTHON="$$(.ci/setup python newest)" $(VENV)/bin/coverage run $(RUN_TESTS) $(PYTEST); status=$$?; \
		$(VENV)/bin/coverage combine -q && $(VENV)/bin/coverage report && exit $$status

docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build -q

bench: $(VENV)-bench/.bench
	@.ci/setup packages $(if $(findstring --peers,$(BENCH)),peers)
	@NEWEST_PYTHON="$$(.ci/setup python newest)" $(VENV)-bench/bin/python -m benchmarks $(BENCH)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/python .ci/check_prose.py $(PROSE)

man: $(VENV)/.dev
	$(VENV)/bin/python .ci/man

clean:
	rm -rf .venv* .demo .end-to-end .tox .coverage build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# The age of a stamp is that of the last installation with these extras.
$(VENV)/.demo: $(DEFINES)
	@.ci/setup venv $(VENV) all $(PYTHON)
	@touch $@

$(VENV)/.dev: $(DEFINES)
	@.ci/setup venv $(VENV) dev $(PYTHON)
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(DEFINES)
	@.ci/setup venv $(VENV) dev,docs $(PYTHON)
	@touch $@ $(VENV)/.demo $(VENV)/.dev

# A Python without PGO takes up to 1.3 times as long; users run one with it.
$(VENV)-bench/.bench: $(DEFINES)
	@.ci/setup venv $(VENV)-bench bench "$(or $(PYTHON),$$(.ci/setup python fastest))"
	@touch $@
