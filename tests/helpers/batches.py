"""Answers that come in batches, as one mapping."""

from __future__ import annotations

from typing import Any

from tunebook.generation.answers import Answer
from tunebook.generation.generate import generate


def all_answers(*arguments: Any, **options: Any) -> dict[int, Answer]:
    """What `generate` yields, put together: the answers by the numbers of their prompts."""
    answers: dict[int, Answer] = {}
    for batch in generate(*arguments, **options):
        answers |= batch
    return answers
