"""Right and wrong answers to one question, and pairs made of them."""

from __future__ import annotations

from tunebook.pairs.on_policy import pairs_of_row
from tunebook.pairs.pair import check_sample
from tunebook.recipe.sections import PairsConfig

RIGHT = "### Solution\n1. 2 + 3 = 5\n### Final Answer\n\\boxed{5}"
WRONG = RIGHT.replace("5", "6")


def sample(text: str, truncated: bool = False, tokens: int = 20, gold: str = "5") -> dict:
    return {
        "text": text,
        "tokens": tokens,
        "truncated": truncated,
        "seed": 0,
        "verdict": check_sample(text, gold, truncated, RIGHT),
    }


def made(config: PairsConfig, rows: list[dict], samples: list[dict]) -> list[dict]:
    pairs = []
    for i, row in enumerate(rows):
        own = samples[i * config.samples : (i + 1) * config.samples]
        pairs += pairs_of_row(config, row, own, lambda text: 20)
    return pairs


ROW = {
    "source_id": "row/1",
    "gold": "5",
    "prompt": [{"role": "user", "content": "2 + 3?"}],
    "completion": [{"role": "assistant", "content": RIGHT}],
    "tokens": 60,
}


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]
