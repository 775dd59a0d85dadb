"""Preference pairs: out of checked samples or an existing set, and what gives their sides away.

A pair is a row with `prompt`, `chosen`, `rejected` (lists of messages) and columns that say where it comes from and what was
checked. A sample is a dict with `text`, `tokens`, `seed` and its `verdict`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tunebook.checkers.maths import verify
from tunebook.data.checks import NOT_AN_ANSWER
from tunebook.data.rows import images_of
from tunebook.recipe.sections import PairsConfig

Sample = dict[str, Any]


Pair = dict[str, Any]


COLUMNS = dict.fromkeys(("prompt", "chosen", "rejected"), "messages") | dict.fromkeys(
    ("source_id", "strategy", "gold", "sampling"), "string"
)


COLUMNS |= {
    "chosen_correct": "bool",
    "rejected_correct": "bool",
    "chosen_tokens": "int32",
    "rejected_tokens": "int32",
    "margin": "float32",
}


def check_sample(text: str, gold: str, truncated: bool, like: str) -> Literal["right", "wrong", "broken"]:
    """Whether an answer can be chosen (`right`) or rejected (`wrong`); one that is cut off, empty, an error text, unboxed, or
    not in the format of the solution `like` (its last heading) can be neither."""
    verdict = verify(text, gold, boxed_only=True)
    boxed = verdict.how == "boxed" and bool((verdict.parsed or "").strip())
    if truncated or not boxed or NOT_AN_ANSWER.search(text) or _last_heading(text) != _last_heading(like):
        return "broken"
    return "right" if verdict.correct else "wrong"


def reference(row: dict[str, Any], count_tokens: Callable[[str], int]) -> Sample:
    """A row's own solution in the place of a sample."""
    text = row["completion"][0]["content"]
    return {"text": text, "tokens": count_tokens(text), "seed": None}


def make_pair(
    config: PairsConfig, row: dict[str, Any], chosen: Sample, rejected: Sample, strategy: str
) -> Pair:
    pair = {
        "prompt": row["prompt"],
        "source_id": row["source_id"],
        "strategy": strategy,
        "gold": row["gold"],
        "margin": None,
    }
    pair["images"] = [Path(path).name for path in images_of(row)]
    for side, sample in (("chosen", chosen), ("rejected", rejected)):
        pair[side] = [{"role": "assistant", "content": sample["text"]}]
        pair[f"{side}_correct"] = verify(sample["text"], row["gold"], boxed_only=True).correct
        pair[f"{side}_tokens"] = sample["tokens"]
    how = config.model_dump(include={"temperature", "max_new_tokens"}) | {
        "model": config.server.model if config.server else "policy"
    }
    return pair | {
        "sampling": json.dumps(how | {"chosen_seed": chosen["seed"], "rejected_seed": rejected["seed"]})
    }


def length_ratio(a: Sample, b: Sample) -> float:
    return float(max(a["tokens"], b["tokens"]) / max(1, min(a["tokens"], b["tokens"])))


def _last_heading(text: str) -> str | None:
    return next(reversed(re.findall(r"^#+ .*\S", text, re.M)), None)
