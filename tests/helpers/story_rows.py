"""Rows of sums in a story, each of which passes every check."""

from __future__ import annotations

GOOD = "### Solution\n1. {a} + {b} = {s}\n### Final Answer\n\\boxed{{{s}}}"


def question(i: int) -> str:
    themes = [
        "apples in a basket",
        "coins in a jar",
        "birds on a wire",
        "pages of a book",
        "steps of a tower",
    ]
    story = f"there are {i} {themes[i % 5]} and {2 * i + 1} more arrive before noon on day {i * 7}"
    return f"Story {i}: {story}. How many are there then?"


def good(i: int) -> dict:
    return {
        "prompt": question(i),
        "completion": GOOD.format(a=i, b=2 * i + 1, s=3 * i + 1),
        "answer": str(3 * i + 1),
    }
