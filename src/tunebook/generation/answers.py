"""What an answer is, and how it is asked for."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from tunebook.recipe.sections import RequestsConfig

Images = list[list[str]]
"""Of each prompt the files that go with its first question."""


def fill(template: str, parts: dict[str, str]) -> str:
    """A prompt's text with its parts in it: `{"{question}": ...}`."""
    # All parts at once, so that a question which holds `{solution}` stays as it is.
    names = "|".join(map(re.escape, parts))
    return re.sub(names, lambda match: parts[match[0]], template)


def seed_of(text: str) -> int:
    """The seed of a sample by what it is of: it depends on nothing else, and a resumed run draws the same."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


@dataclass(frozen=True)
class Answer:
    """One generated text without special tokens."""

    text: str
    tokens: int
    """Of the answer, with the end of turn."""
    truncated: bool
    """There was no end of turn."""
    prompt_tokens: int = 0
    """As a server has counted them."""


@dataclass(frozen=True)
class Sampling:
    """How to answer. At temperature 0 greedily; else each prompt is sampled with a seed of its own."""

    max_new_tokens: int
    batch_size: int = 64
    """Prompts that a local model answers at once; a server has its own `concurrency`."""
    temperature: float = 0.0
    seeds: list[int] | None = None
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""
    top_k: int = 0
    """Only so many of the likeliest tokens; 0: all."""


@dataclass
class Usage:
    """What a server has answered so far, by its own count."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, tokens_in: int, tokens_out: int) -> None:
        """Count one more request."""
        self.requests += 1
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out

    def cost(self, prices: RequestsConfig) -> float:
        """In the currency of the prices, which are for a million tokens."""
        return (self.tokens_in * prices.price_in + self.tokens_out * prices.price_out) / 1e6


# The last repetition may be cut off by the limit of tokens, hence the rest of up to 40 characters.
LOOP = re.compile(r"(.{1,40}?)\1{9}.{0,40}\Z", re.DOTALL)


def repeats(text: str) -> bool:
    """Whether a text ends in one piece of up to 40 characters, ten times and more in a row.

    Those of a collapsed model do.
    """
    return LOOP.search(text[-500:]) is not None
