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
    "digits": lambda text: sum(map(str.isdigit, text)),
    "punctuation": lambda text: len(re.findall(r"[^\w\s]|_", text)),
}
"""What a text looks like, whatever it says."""


def shortcut_accuracy(values: list[tuple[float, float]]) -> float:
    """How often the side with the smaller (or else the larger) value is the chosen one; ties count half.

    0.5 is healthy; near 1 the pairs teach this value and little else.

    Args:
        values: Of chosen and rejected, of each pair.
    """
    smaller = 0.0
    for chosen, rejected in values:
        smaller += (chosen < rejected) + 0.5 * (chosen == rejected)
    share = smaller / len(values)
    return max(share, 1 - share)


def format_only(pairs: list[Pair]) -> dict[str, float]:
    """`shortcut_accuracy` of each trait of `FORMAT`, the most telling first."""
    accuracies = {}
    for name, measure in FORMAT.items():
        values = []
        for pair in pairs:
            values.append((measure(pair["chosen"][0]["content"]), measure(pair["rejected"][0]["content"])))
        accuracies[name] = shortcut_accuracy(values)
    return dict(sorted(accuracies.items(), key=lambda item: -item[1]))


def marked(pair: Pair) -> list[tuple[str, bool]]:
    """The rejected text in parts, each with whether chosen lacks it: whole words, numbers and signs."""
    chosen = _tokens(pair["chosen"][0]["content"])
    rejected = _tokens(pair["rejected"][0]["content"])
    matcher = difflib.SequenceMatcher(None, chosen, rejected, autojunk=False)
    parts = []
    for kind, _, _, start, end in matcher.get_opcodes():
        if end > start:
            parts.append(("".join(rejected[start:end]), kind != "equal"))
    return parts


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|.", text)
