"""`track: tensorboard` from training to evaluation, its event files read back."""

from __future__ import annotations

import pytest

from tunebook.evaluation.evaluate import evaluate
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import log_history
from tunebook.training.sft import sft


def scalars(folder):
    """{name: {step: value}} of TensorBoard's files in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        found[name] = {event.step: event.value for event in events.Scalars(name)}
    return found


def test_losses_and_accuracies_are_in_tensorboards_files(tiny_recipe, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    short = {"sft.max_steps": 4, "evaluate.limit": 4, "evaluate.max_new_tokens": 8, "track": "tensorboard"}
    recipe = load_recipe(tiny_recipe, overrides=short)
    sft(recipe)
    shown = scalars(recipe.run_dir / "tracking" / "sft")
    history = log_history(recipe.run_dir / "sft")
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    assert set(shown["train/loss"]) == {1, 2, 3, 4}
    assert shown["train/loss"] == pytest.approx(losses, rel=1e-3)
    results = evaluate(recipe)
    shown = scalars(recipe.run_dir / "tracking" / "eval")
    for name in ("base", "sft"):
        assert shown[f"{name}/accuracy"][0] == pytest.approx(results[name]["accuracy"])
        assert shown[f"{name}/n"][0] == 4
    # The key is none of those that a result depends on.
    assert load_recipe(tiny_recipe, overrides=short | {"track": []}).track == []
    assert evaluate(load_recipe(tiny_recipe, overrides=short | {"track": []})) == results
