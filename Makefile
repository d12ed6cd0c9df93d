# `make` or `make help` lists the targets. They use `python`; activate your virtual environment first.
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+: .*##' Makefile | sed -E 's/: .*## /\t/'

check:  ## lint and types, as CI does first
	ruff check .
	ruff format --check .
	mypy

test:  ## the default tests, with branch coverage
	python -m pytest --cov

slow:  ## the tests that take minutes
	python -m pytest -m slow

mutate:  ## changes details of the code and counts the changes that the tests notice; takes hours
	mutmut run
	mutmut results

docs:  ## the manual, into site/
	mkdocs build --strict

bench:  ## the quick benchmarks beside plain Keras scripts
	python -m benchmarks.speed --quick

.PHONY: help check test slow mutate docs bench
