# Two commands from a bare machine with Python 3.10+ and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-benchmark
FLOOR := .venv-floor
FLOOR_PYTHON ?= $(shell command -v python3.10 || echo $(PYTHON))
LOGDIR ?= runs/quickstart

.PHONY: demo test test-floor lint types unit format benchmark benchmark-stopping clean

demo: $(VENV)/.test-installed
	$(BIN)/python examples/quickstart.py --logdir $(LOGDIR)

test: lint types unit

# With the lowest versions that we promise to work with. Not part of `test`: it takes half an hour, and on Linux the first
# time gigabytes, since PyPI's torch 2.6 brings CUDA along.
test-floor: $(FLOOR)/.installed
	$(FLOOR)/bin/python -m pytest

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test-installed
	$(BIN)/pyright

unit: $(VENV)/.test-installed
	$(BIN)/python -m pytest

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers are kept out of $(VENV): what they would pull in (torchvision) can break `import lightning`.
benchmark: $(PEERS)/.installed
	$(PEERS)/bin/python benchmarks/tap.py --output docs/benchmarks/tap.md

# An hour on two cores; what was cut off goes on. After a change of code: make clean, or another --cache.
benchmark-stopping: $(VENV)/.test-installed
	$(BIN)/python benchmarks/stopping.py --output docs/benchmarks/stopping.md

clean:
	rm -rf $(VENV) $(PEERS) $(FLOOR) build dist runs

# One stamp file for one environment: re-made when what we depend on changes.
$(VENV)/.test-installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# BackPACK asks for torchvision and needs it in its examples alone.
$(PEERS)/.installed: pyproject.toml constraints.txt benchmarks/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt --editable . --requirement benchmarks/peers.txt
	$(PEERS)/bin/python -m pip install --quiet --no-deps backpack-for-pytorch==1.7.1
	touch $@

$(FLOOR)/.installed: pyproject.toml constraints-floor.txt
	test -x $(FLOOR)/bin/python || $(FLOOR_PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --constraint constraints-floor.txt --editable '.[test]'
	touch $@
