"""Odd surroundings: a user without a home, a recipe that the environment names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunebook import pipeline
from tunebook.models import backend
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("TUNEBOOK_CACHE", raising=False)
    monkeypatch.setattr(
        backend, "user_cache_path", lambda name: Path("~/.cache") / name
    )  # what is left of it for a user id without an account
    with pytest.raises(UserError, match="set TUNEBOOK_CACHE"):
        backend.cache_dir()


def test_run_hands_on_the_recipe_that_the_environment_names(tmp_path, monkeypatch):
    """A copy that still bears the default's name is not the default."""
    from tunebook import cli

    mine, given = tmp_path / "mine.yaml", []
    mine.write_text((ROOT / "configs" / "smollm2-math.yaml").read_text())
    monkeypatch.setenv("TUNEBOOK_RECIPE", str(mine))
    monkeypatch.setattr(pipeline, "run", lambda *args: given.append(args[0].source))
    monkeypatch.setattr("sys.argv", ["tunebook", "run", "--dry-run"])
    with pytest.raises(SystemExit):
        cli.main()
    assert given == [str(mine)]
