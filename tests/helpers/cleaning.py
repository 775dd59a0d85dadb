"""Rows to be cleaned, and the recipe that cleans them."""

from __future__ import annotations

import json
from pathlib import Path

import whole_recipe
import yaml


def recipe_file(folder: Path, rows: int, **given) -> Path:
    """The default recipe with rows to clean; its data come from what was cleaned."""
    raw = folder / "raw.jsonl"
    lines = [
        json.dumps(
            {"question": f"In row {n}: what is {n} plus 2?", "solution": f"{n} + 2 = \\boxed{{{n + 2}}}"}
        )
        for n in range(rows)
    ]
    raw.write_text(
        "\n".join(
            [
                *lines,
                "{broken",
                json.dumps({"question": "no solution"}),
                json.dumps({"question": "q", "solution": "s"}),
            ]
        )
        + "\n"
    )
    content = whole_recipe.content("smollm2-math")
    content |= {
        "name": "cleaned",
        "clean": {"source": str(raw), "model": "m", "timeout": 1, "retries": 2, **given},
    }
    content["data"] |= {
        "sources": [{"format": "chat", "path": "{run}/clean/rows.jsonl"}],
        "near_duplicate": 1.0,
    }
    path = folder / "cleaned.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]
