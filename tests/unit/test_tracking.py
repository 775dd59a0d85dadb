"""The recipe's `track`: which trackers, by what names, and what happens when one fails."""

from __future__ import annotations

import os

import pytest

from tunebook.recipe import trackers
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.runs import tracking


def test_one_name_several_or_none(monkeypatch):
    monkeypatch.setattr(trackers, "is_installed", lambda package: True)
    assert load_recipe().track == []
    assert load_recipe(overrides={"track": "wandb"}).track == ["wandb"]
    assert load_recipe(overrides={"track": "wandb, tensorboard"}).track == ["wandb", "tensorboard"]
    assert load_recipe(overrides={"track": "none"}).track == []
    with pytest.raises(UserError, match=r"track"):
        load_recipe(overrides={"track": "wandbb"})


def test_a_tracker_that_is_not_installed_is_one_line_when_the_recipe_is_read(monkeypatch):
    monkeypatch.setattr(trackers, "is_installed", lambda package: False)
    with pytest.raises(
        UserError, match=r"track: trackio needs the package trackio.*`uv pip install trackio`"
    ):
        load_recipe(overrides={"track": ["trackio"]})


def test_what_trainers_are_told(monkeypatch):
    monkeypatch.setattr(trackers, "is_installed", lambda package: True)
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_PROJECT", "SWANLAB_PROJECT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert tracking.trainer_settings(load_recipe(), "sft") == {}
    assert "WANDB_PROJECT" not in os.environ
    recipe = load_recipe(run="evening", overrides={"track": ["wandb", "mlflow"]})
    told = tracking.trainer_settings(recipe, "dpo")
    assert told == {"report_to": ["wandb", "mlflow"], "run_name": "evening-dpo", "project": "tunebook"}
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(recipe.run_dir / "tracking" / "dpo")
    assert (os.environ["WANDB_PROJECT"], os.environ["MLFLOW_EXPERIMENT_NAME"]) == ("tunebook", "mine")


def test_numbers_of_nested_results():
    results = {
        "sft": {"accuracy": 0.5, "n": 4, "interval": [0.1, 0.9], "ends": True, "slices": {"a": {"n": 2}}}
    }
    assert tracking._numbers(results) == {"sft/accuracy": 0.5, "sft/n": 4.0, "sft/slices/a/n": 2.0}
