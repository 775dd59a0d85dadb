"""The retention suite: short items of several skills, with which a trained model is held against its base.

They lie in `retention/<skill>.jsonl`. An item has `choices`, of which the first is right, or `instructions`
that an answer must obey (`checkers/instructions.py`). `lead` is how all choices of an item begin.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunebook.data.rows import Row

FOLDER = Path(__file__).with_name("retention")

SKILLS = {
    "instructions": "following instructions",
    "facts": "facts",
    "arithmetic": "arithmetic",
    "reading": "reading",
    "everyday": "everyday reasoning",
    "json": "JSON and tools",
    "refusal": "refusing",
    "languages": "German and Spanish",
}
"""The name of each file, and what a report calls its skill."""


def retention_items() -> list[dict[str, Any]]:
    """All items, with `skill`, `source_id` and `prompt`."""
    items = []
    for skill in SKILLS:
        lines = (FOLDER / f"{skill}.jsonl").read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            item = json.loads(line)
            prompt = [{"role": "user", "content": item["question"]}]
            items.append({**item, "skill": skill, "source_id": f"{skill}:{number}", "prompt": prompt})
    return items


def retention_rows() -> list[Row]:
    """The questions as rows that training must not hold."""
    return [Row(item["source_id"], "test", item["prompt"], []) for item in retention_items()]
