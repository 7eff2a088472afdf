# Two commands for a newcomer: `make quickstart` and `make test`. Both make what they need.
PYTHON ?= python3
VENV ?= .venv
TEST_VENV ?= .venv-test
WORKDIR ?= runs/quickstart
# With the TPU compiler, which compiles without a TPU, tests of the programs for TPU run too: test,tpu.
TEST_EXTRAS ?= test
ARGS ?=
DOCS_RUNS = $(CURDIR)/docs/_build/runs
DOCS_ARMS = --arm=grpo --arm=perception_kl=0.02

.PHONY: quickstart test newest exhaustive lint docs size clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(TEST_VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TEST_VENV)
	$(TEST_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$(TEST_EXTRAS)]"
	touch $@

$(TEST_VENV)/linters: $(TEST_VENV)/installed
	$(TEST_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[$(TEST_EXTRAS),dev]"
	touch $@

quickstart: $(VENV)/installed
	$(VENV)/bin/mmrl train --config=experiments/quickstart.py --workdir=$(WORKDIR) $(ARGS)

test: $(TEST_VENV)/installed
	$(TEST_VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# The newest jax and libraries, which constraints.txt leaves open from Python 3.12 on.
newest:
	$(MAKE) test PYTHON=python3.13 TEST_VENV=.venv-newest TEST_EXTRAS=test,tpu

exhaustive: $(TEST_VENV)/installed
	$(TEST_VENV)/bin/python -m pytest -n auto --maxprocesses 4 -m exhaustive $(ARGS)

lint: $(TEST_VENV)/linters
	$(TEST_VENV)/bin/ruff check .
	$(TEST_VENV)/bin/ruff format --check .
	$(TEST_VENV)/bin/mypy

# Notebooks show a smoke run and a smoke sweep, which are made once.
docs: $(TEST_VENV)/installed
	$(TEST_VENV)/bin/mmrl train --config=experiments/quickstart.py:smoke --workdir=$(DOCS_RUNS)/run
	$(TEST_VENV)/bin/mmrl sweep experiments/sweeps/papo_coefficient.py:smoke --workdir=$(DOCS_RUNS)/sweep $(DOCS_ARMS)
	MMRL_RUN=$(DOCS_RUNS)/run MMRL_SWEEP=$(DOCS_RUNS)/sweep $(TEST_VENV)/bin/python -m sphinx -E -W --keep-going -n -q docs docs/_build/html

# Rooms of mmrl/ and launch/: files, lines, lines a file.
size:
	@git ls-files 'mmrl/*.py' 'launch/*.py' | while read -r file; do echo "$$file $$(wc -l < "$$file")"; done | awk ' \
	  { split($$1, part, "/"); room = part[1] "/" (part[3] ? part[2] : "*.py"); \
	    files[room]++; lines[room] += $$2; files["all of " part[1]]++; lines["all of " part[1]] += $$2 } \
	  END { for (room in files) printf "%-20s %4d files %6d lines %5d a file\n", room, files[room], lines[room], \
	    lines[room] / files[room] }' | sort

clean:
	rm -rf docs/_build $(VENV) $(TEST_VENV) .venv-newest build *.egg-info .pytest_cache .mypy_cache .ruff_cache
