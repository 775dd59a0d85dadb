"""The checkers by name: the one place that lists them.

To add one: its function in a file of this folder, a line here, its name and options in `OPTIONS` of the
recipe's sections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunebook.checkers.instructions import instructions
from tunebook.checkers.maths import verifier, verify
from tunebook.checkers.python import python
from tunebook.checkers.reward_model import reward_model
from tunebook.checkers.texts import Scores, contains, exact, json, regex, text_of
from tunebook.recipe.sections import CheckerConfig


@dataclass(frozen=True)
class Checker:
    """A checker, and what is known of it before it is asked."""

    function: Callable[..., Scores]
    """Takes its configuration, then what TRL gives a reward function."""
    version: str
    """Part of the keys of the stages that ask it: a new one when its scores change."""
    needs: str | None = None
    """The column without which it can say nothing of a row."""
    is_graded: bool = False
    """Whether there are scores between 0 and 1."""
    in_batches: bool = False
    """Whether many answers are scored faster together, as a model scores them."""
    in_process: bool = False
    """Whether it runs in a process of its own, because a pattern or a user's code may never end."""


def maths(
    config: CheckerConfig, prompts: list[Any], completions: list[Any], *, gold: list[str | None], **_: Any
) -> Scores:
    """1 where the final answer is mathematically the row's; of words, where they are the same."""
    scores: Scores = []
    for completion, wanted in zip(completions, gold, strict=True):
        scores.append(None if wanted is None else float(verify(text_of(completion), wanted).correct))
    return scores


CHECKERS = {
    "maths": Checker(maths, verifier(), needs="gold"),
    "exact": Checker(exact, "1", needs="gold"),
    "contains": Checker(contains, "1", needs="gold"),
    "regex": Checker(regex, "1", in_process=True),
    "json": Checker(json, "1", in_process=True),
    "instructions": Checker(instructions, "1", needs="instructions", is_graded=True),
    "reward_model": Checker(reward_model, "1", is_graded=True, in_batches=True),
    "python": Checker(python, "1", is_graded=True, in_process=True),
}
