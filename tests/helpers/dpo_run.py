"""A tiny run with SFT and pairs done, ready for DPO; entries of DPO's log."""

from __future__ import annotations

import json
from pathlib import Path

from tunebook.pairs.pair import check_sample
from tunebook.pairs.pairs import pairs_stage
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe


def log(step: int, **kwargs: float) -> dict:
    return {"step": step, "loss": 0.7, "rewards/chosen": 0.0, "rewards/accuracies": 0.6} | {
        k.replace("__", "/"): v for k, v in kwargs.items()
    }


def paired_run(tiny_recipe: Path, run: str) -> Recipe:
    """The tiny recipe with SFT done and pairs of two samples: the solution, and it with a wrong box."""
    from tunebook.data.storage import load
    from tunebook.models import backend
    from tunebook.pairs.pairs import pairs
    from tunebook.training.sft import sft

    backend.backend()
    keys = {
        "sft.max_steps": 4,
        "sft.eval_strategy": "no",
        "pairs.samples": 2,
        "dpo.learning_rate": 5e-3,
        "dpo.save_steps": 5,
        "dpo.max_steps": 40,
        "dpo.logging_steps": 1,
    }
    recipe = load_recipe(tiny_recipe, run=run, overrides=keys)
    sft(recipe)
    stage = pairs_stage(recipe)
    stage.partial.mkdir(parents=True)
    (stage.partial / "started.json").write_text(json.dumps({"key": stage.key}))
    lines = []
    for row in load(recipe, "train"):
        right = row["completion"][0]["content"]
        for text in (right, right.replace(f"boxed{{{row['gold']}}}", "boxed{1234}")):
            lines.append(
                {
                    "index": len(lines),
                    "text": text,
                    "tokens": 30,
                    "truncated": False,
                    "seed": 0,
                    "verdict": check_sample(text, row["gold"], False, right),
                }
            )
    (stage.partial / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = pairs(recipe)
    assert sum(record["rows"].values()) == len(lines) // 2
    assert record["pass_counts"] == {"0": 0, "1": len(lines) // 2, "2": 0}
    return recipe
