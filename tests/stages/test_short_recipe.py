"""A recipe of a few lines on a family default trains: shares of steps, checkpoints, the files beside it."""

from __future__ import annotations

import csv
import json

from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import log_history
from tunebook.training.sft import sft


def test_eight_lines_train_with_the_familys_values(tiny, tmp_path, monkeypatch):
    """60 rows, a step of four: ten points on the eval curve and a checkpoint, although nothing says so."""
    folder = tmp_path / "mine"
    folder.mkdir()
    with (folder / "my.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion"])
        for number in range(60):
            writer.writerow([f"What follows {number} in the list?", f"Item {number + 1} does."])
    path = folder / "mine.yaml"
    path.write_text(
        "extends: smollm2\n"
        f"model: {{base: {tiny}, dtype: float32}}\n"
        "data: {sources: [{format: chat, path: my.csv, val: 0.2, test: 0}]}\n"
        "sft: {num_train_epochs: 2}\n"
    )
    recipe = load_recipe(path)
    record = sft(recipe)
    steps = record["metrics"]["steps"]
    assert steps >= 20 and record["metrics"]["optimizer_learning_rate"] == 2e-4
    assert record["metrics"]["effective_batch_size"] == 4
    evaluated = [entry["step"] for entry in log_history(recipe.run_dir / "sft") if "eval_loss" in entry]
    assert 8 <= len(evaluated) <= 12
    checkpoints = sorted(path.name for path in (recipe.run_dir / "sft" / "checkpoints").glob("checkpoint-*"))
    assert "checkpoint-20" in checkpoints
    settings = json.loads((recipe.run_dir / "sft" / "stage.json").read_text())["settings"]
    assert settings["sft"]["lr_scheduler_type"] == "cosine" and settings["lora"]["r"] == 16
