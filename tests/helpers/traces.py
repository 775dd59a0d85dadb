"""Loss traces of runs, and a recipe of which several processes can take their share of each step."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tunebook.runs import files

# What trains.


def four_rows_a_step(tiny_recipe: Path, tmp_path: Path) -> Path:
    """The tiny recipe with four rows a step, two at a time; its pairs are in `pairs.jsonl`."""
    content = yaml.safe_load(tiny_recipe.read_text())
    exact = {
        "bf16": False,
        "gradient_accumulation_steps": 2,
    }  # in bfloat16 the batch's shape shows in the loss
    content["sft"] |= exact | {"eval_strategy": "no"}
    content["pairs"] = {"methods": ["dataset"], "dataset": str(tmp_path / "pairs.jsonl"), "val": 0}
    content["dpo"] |= exact | {"per_device_train_batch_size": 2, "learning_rate": 5e-3, "max_steps": 8}
    content["dpo"] |= {"loss_type": ["sigmoid"], "loss_weights": [1.0], "logging_steps": 1, "save_steps": 3}
    tiny_recipe.write_text(yaml.safe_dump(content))
    return tiny_recipe


def trace(run_dir: Path, stage: str = "sft") -> dict[int, tuple[float, float]]:
    return {
        e["step"]: (float(e["loss"]), float(e["grad_norm"]))
        for e in files.log_history(run_dir / stage)
        if "loss" in e
    }


def close(found: dict[int, tuple[float, float]], expected: dict[int, tuple[float, float]]) -> bool:
    return found.keys() == expected.keys() and all(
        found[k] == pytest.approx(expected[k], abs=1e-4) for k in expected
    )
