"""What gives the two sides of a pair away, whatever they say: length, layout."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from tunebook.pairs.pair import Pair

FORMAT: dict[str, Callable[[str], float]] = {
    "lines": lambda text: text.count("\n"),
    "headings": lambda text: len(re.findall(r"^(?:#+ |\*\*)", text, re.M)),
    "numbered steps": lambda text: len(re.findall(r"^\s*\d+[.)] ", text, re.M)),
    "boxes": lambda text: text.count("\\boxed"),
    "LaTeX commands": lambda text: len(re.findall(r"\\[a-zA-Z]+", text)),
    "digits": lambda text: sum(c.isdigit() for c in text),
    "punctuation": lambda text: sum(not c.isalnum() and not c.isspace() for c in text),
}
"""What a text looks like, whatever it says."""


def told_apart(values: list[tuple[float, float]]) -> float:
    """How often "the smaller (or the larger) one is chosen" is right of (chosen, rejected) values, whichever is better; ties
    count half. 0.5 is healthy; near 1 the pairs teach this value and little else."""
    smaller = sum((c < r) + 0.5 * (c == r) for c, r in values) / len(values)
    return max(smaller, 1 - smaller)


def format_only(found: list[Pair]) -> dict[str, float]:
    """`told_apart` for each trait of `FORMAT`, the most telling first."""
    texts = [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in found]
    told = {name: told_apart([(f(c), f(r)) for c, r in texts]) for name, f in FORMAT.items()}
    return dict(sorted(told.items(), key=lambda item: -item[1]))


def marked(pair: Pair) -> list[tuple[str, bool]]:
    """The rejected text in parts, each with whether chosen lacks it: whole words, numbers and signs."""
    chosen, rejected = (re.findall(r"\w+|\s+|.", pair[side][0]["content"]) for side in ("chosen", "rejected"))
    codes = difflib.SequenceMatcher(None, chosen, rejected, autojunk=False).get_opcodes()
    return [
        ("".join(rejected[start:end]), kind != "equal") for kind, _, _, start, end in codes if end > start
    ]
