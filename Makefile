# `make check` before each save, `make test` before each commit; CI does the rest.
WORKERS ?= 2
PYTEST = uv run pytest -n $(WORKERS)

.PHONY: check test ci

check:  ## lint, types, and tests of plain Python: seconds
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy
	$(PYTEST) tests/unit

test: check  ## and those that load tiny models: minutes
	$(PYTEST) --dist loadfile tests/stages

ci:  ## what CI runs
	bash .ci/run
