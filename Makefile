# make demo      install into .venv, then make phantoms, train on them, score and draw a picture
# make test      install into .venv with the test tools, then run all tests and print what they cover
# make check     ruff and pyright
# make campaign  the tests that need minutes, gigabytes or a bare environment
# make docs      build the pages into docs/_build/html
# make clean     remove .venv and everything built
#
# Python 3.11 or later; another one than python3: make clean, then make test PYTHON=python3.13

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check campaign docs clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

demo: .venv/.installed-report
	$(BIN)/maskmed-zoo demo

test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov

check: .venv/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

campaign: .venv/.installed-dev
	$(BIN)/python -m pytest tests/campaign --durations=0

docs: .venv/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf .venv build dist docs/_build docs/reference/generated .pytest_cache .ruff_cache .hypothesis .coverage

# One stamp per extra, out of date when pyproject.toml is newer.
.venv/.installed-%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -e ".[$*]"
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv
