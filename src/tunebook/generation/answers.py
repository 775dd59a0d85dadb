"""What an answer is, and how it is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """One generated text without special tokens. `tokens` counts the end of turn; `truncated`: there was none."""

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Sampling:
    """How to answer. At temperature 0 greedily; else each prompt is sampled with a seed of its own."""

    max_new_tokens: int
    batch_size: int = 64
    """Prompts that a local model answers at once; a server has its own `concurrency`."""
    temperature: float = 0.0
    seeds: list[int] | None = None


Images = list[list[str]]
"""Of each prompt the files that go with its first question."""


LOOP = re.compile(r"(.{1,40}?)\1{9}.{0,40}\Z", re.DOTALL)


def repeats(text: str) -> bool:
    """Whether a text ends in one piece of up to 40 characters, ten times and more in a row, as those of a collapsed model do."""
    return LOOP.search(text[-500:]) is not None
