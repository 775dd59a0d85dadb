"""The real lm-evaluation-harness on the embedded model, with small files in the five benchmarks' formats."""

from __future__ import annotations

import pytest

from tunebook.evaluation import benchmarks
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    recipe = load_recipe()  # reads the fields of installed packages, which the next line hides
    monkeypatch.setattr(benchmarks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="uv sync --extra eval"):
        benchmarks.bench(recipe)
