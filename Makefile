# make demo: see it work.  make test: the whole suite.  Both make their own virtual environment, .venv.
# make demo ARGS="--keep", make test ARGS="-k ledger", make bench ARGS="--quick" pass options on.
SHELL := /bin/bash
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHON
ENV_SOURCES := setup.py pyproject.toml resources/constraints.txt resources/make-env $(wildcard $(addprefix tangods_receiver/_*.,pyx c h))
ARGS ?=
PARALLEL := -n 3 --dist loadfile  # two cores idle half the time at -n 2; ARGS="-n 0": one after the other
TWINS := $(addprefix tests/receiver/test_,codecs.py engine.py seriesfile.py transforms.py) tests/hw/test_frame_ring.py

.PHONY: help demo docs test check soak fuzz bench screenshots lint format clean env-demo env-test apt-test apt-soak apt-bench old-python promtool

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile; echo "also: docs, check (fast tests), soak, fuzz, bench, screenshots, lint, format, clean"

demo: .venv/.demo  ## one acquisition through a real Tango database and both devices
	@tangods-detector demo $(ARGS)

docs: .venv/.docs  ## into build/docs, without network; a warning or a broken link is an error
	@python docs/build.py $(ARGS)

test: apt-test .venv/.test old-python promtool lint  ## everything but the soak tests; then what has a compiled twin, without it
	@python -m pytest -q $(PARALLEL) $(ARGS)
	@TANGODS_NO_COMPILED=1 python -m pytest -q $(PARALLEL) -m "not slow and not soak" $(TWINS) $(ARGS)

check: .venv/.test  ## the fast part, without device servers of their own
	@python -m pytest -q $(PARALLEL) -m "not slow and not system and not soak" --hypothesis-profile=quick $(ARGS)

soak: apt-test apt-soak .venv/.test  ## minutes to hours
	@python -m pytest -m soak --timeout 0 $(ARGS)

fuzz: .venv/.fuzz  ## a million malformed messages against decoders, workers and files
	@python -m tests.fuzz $(ARGS)

bench: apt-bench .venv/.test  ## side by side with C programs and others, in one run
	@python benchmarks/run.py $(ARGS)

screenshots: apt-test .venv/.test  ## pictures of the GUI, into resources/screenshots
	@SCREENSHOTS=resources/screenshots python -m pytest -q -m "soak or not soak" tests/gui $(ARGS)

lint: .venv/.test
	@ruff format --check . && ruff check . && mypy

format: .venv/.test
	@ruff format . && ruff check --fix .

.venv/.demo: $(ENV_SOURCES)
	@resources/make-env demo $@

.venv/.docs: $(ENV_SOURCES)
	@resources/make-env docs $@

.venv/.test: $(ENV_SOURCES)
	@resources/make-env test $@

.venv/.fuzz: $(ENV_SOURCES)
	@resources/make-env test,fuzz $@

apt-test:
	@resources/install-apt test

apt-soak:
	@resources/install-apt soak

apt-bench:
	@resources/install-apt bench

old-python:
	@resources/make-old-python

promtool:
	@resources/make-promtool

clean:  ## all that make has made, the virtual environment included
	rm -rf .venv .venv.lock build dist *.egg-info benchmarks/build var
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
