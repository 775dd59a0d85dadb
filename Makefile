# `make check` before each save, `make test` before each commit; CI does the rest.
WORKERS ?= 2
PYTEST = uv run pytest -n $(WORKERS)

.PHONY: check test docs ci

check:  ## lint, types, and tests of plain Python: seconds
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy
	$(PYTEST) tests/unit

test: check  ## and those that load tiny models: minutes
	$(PYTEST) --dist loadfile tests/stages

docs:  ## the site, in site/: both builders look for broken links and unknown names
	uv run python scripts/docs_pages.py
	uv run --isolated --only-group docs mkdocs build --strict --quiet --theme readthedocs
	uv run --isolated --only-group docs zensical build --strict

ci:  ## what CI runs
	bash .ci/run
