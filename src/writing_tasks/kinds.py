"""Kinds of instruction: how each is said, which values it takes, and what it cannot stand beside."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
WORDS = ("water", "people", "world", "small", "time", "food", "home", "life", "earth", "together")


@dataclass(frozen=True)
class Kind:
    """An instruction that comes with different values."""

    name: str
    """What the checker calls it (the recipe's `check: instructions`)."""
    text: str
    """How it is said, with `{}` for the value."""
    values: Sequence[Any]
    decides: frozenset[str]
    """What it says of a text. Two kinds that say something of the same contradict each other, or nearly."""
    held_out: bool = False
    """Never in training."""

    def say(self, value: Any) -> str:
        """The instruction as a sentence."""
        in_words = NUMBERS.get(value, value) if isinstance(value, int) and self.name in COUNTED else value
        sentence = self.text.format(in_words)
        # `exactly one sentences`
        return sentence.replace("one sentences", "one sentence")


COUNTED = ("sentences", "bullets", "numbered")


def _kind(name: str, text: str, values: Sequence[Any], decides: str, held_out: bool = False) -> Kind:
    return Kind(name, text, values, frozenset(decides.split()), held_out)


KINDS: dict[str, Kind] = {
    "max_words": _kind("max_words", "Use at most {} words.", (10, 15, 20, 25), "length"),
    "min_words": _kind("min_words", "Use at least {} words.", (20, 25, 30), "length"),
    "sentences": _kind("sentences", "Answer in exactly {} sentences.", (1, 2, 3), "form"),
    "bullets": _kind(
        "bullets", 'Answer with exactly {} lines that begin with "- ".', (2, 3, 4), "form first last"
    ),
    "numbered": _kind(
        "numbered", "Answer with a numbered list of exactly {} items.", (2, 3, 4), "form first last"
    ),
    "json": _kind(
        "json",
        'Answer with a JSON object that has the keys "topic" and "{}" and nothing else.',
        ("fact", "use", "text"),
        "form first last commas case",
    ),
    "no_commas": _kind("no_commas", "Do not use any commas.", (True,), "commas"),
    "include": _kind("include", 'Use the word "{}".', WORDS, "word"),
    "exclude": _kind("exclude", 'Do not use the word "{}".', ("the", "and", "is", "a"), "word"),
    "begin": _kind(
        "begin", 'Begin with the words "{}".', ("In short", "Many people", "Did you know"), "first case"
    ),
    "end": _kind("end", 'End with the words "{}"', ("That is all.", "I hope this helps."), "last case"),
    "exclamation": _kind("end", "End with an exclamation mark.", ("!",), "last"),
    "lower": _kind("lower", "Write everything in lower case.", (True,), "case"),
    "question": _kind("end", "Write it as a question.", ("?",), "last", held_out=True),
    "quotes": _kind(
        "quotes", "Put all of it in double quotation marks.", (True,), "first last", held_out=True
    ),
    "upper": _kind("upper", "Write everything in CAPITAL LETTERS.", (True,), "case", held_out=True),
}
"""The kinds by name. `question` and `exclamation` are checked as an end."""


def draw_kinds(generator: random.Random, names: Sequence[str], count: int) -> tuple[str, ...]:
    """So many different kinds that can stand together, in the order of `KINDS`."""
    while True:
        drawn = generator.sample(names, count)
        decided: list[str] = []
        for name in drawn:
            decided += KINDS[name].decides
        if len(decided) == len(set(decided)):
            return tuple(sorted(drawn, key=list(KINDS).index))


def instruction(kind: str, value: Any) -> Any:
    """A kind with its value as the checker reads it: `{"max_words": 20}` or `"no_commas"`."""
    name = KINDS[kind].name
    if value is True:
        return name
    if kind == "json":
        return {name: ["topic", value]}
    return {name: value}
