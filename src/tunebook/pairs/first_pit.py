"""Where a wrong answer goes wrong: its first line after which every continuation fails.

The model itself is asked to go on from beginnings of the answer. What the pair then teaches is that line, and
not all that follows it (Setlur et al. 2024; Hwang et al. 2024, Self-Explore).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunebook.pairs.pair import Pair, Sample, distinct, length_ratio, make_pair
from tunebook.pairs.work import Request, Work


@dataclass
class Search:
    """A binary search over the lines of a wrong sample."""

    row: dict[str, Any]
    rejected: Sample
    lines: list[str]
    chosen: Sample
    """A right answer that begins with the first `good` lines."""
    good: int
    """So many first lines have a right continuation; 0 is the question alone."""
    bad: int
    """After so many all continuations fail."""

    @property
    def middle(self) -> int:
        """The number of lines to ask about next."""
        return (self.good + self.bad) // 2

    def narrow(self, continuations: list[Sample]) -> None:
        """Go on in the half that holds the pit."""
        # One that ends right is enough: from there the answer could still be saved.
        right = [sample for sample in continuations if sample["verdict"] == "right"]
        if right:
            self.good = self.middle
            self.chosen = right[0]
        else:
            self.bad = self.middle


def first_pit_pairs(work: Work, samples: list[Sample], continuations: int) -> dict[int, list[Pair]]:
    """Pairs by the number of their row: rejected is a wrong sample, chosen a right answer that begins like it
    up to the line that is its first pit.

    Continuations are kept in `pits-1.jsonl`, ..., a file for each round of the search. A row without a right
    sample has no pair: it is not known to have a beginning that can end right.

    Args:
        samples: Those of each row of `work.rows`, one row after the other.
        continuations: How many must fail.
    """
    searches: dict[int, list[Search]] = {}
    per_row = work.recipe.pairs.samples
    for i, row in enumerate(work.rows):
        searches[i] = _begun(row, samples[i * per_row : (i + 1) * per_row], work.recipe.pairs.per_prompt)
    together: list[Search] = []
    for of_row in searches.values():
        together += of_row
    rounds = 0
    # All searches go one step in each round, so that their continuations share batches.
    while unfinished := [search for search in together if search.bad - search.good > 1]:
        rounds += 1
        requests = []
        for search in unfinished:
            beginning = "".join(search.lines[: search.middle])
            for k in range(continuations):
                seed = work.seed(search.row, f"pit/{beginning}/{k}")
                requests.append(Request(search.row, search.row["prompt"], seed, beginning=beginning))
        answers = work.answer(f"pits-{rounds}.jsonl", requests, f"looking for pits ({rounds})")
        for number, search in enumerate(unfinished):
            search.narrow(answers[number * continuations : (number + 1) * continuations])
    work.record["first_pit"] = {"searched": len(together), "rounds": rounds}
    pairs = {}
    for i, of_row in searches.items():
        pairs[i] = _pairs(work, of_row)
    return pairs


def _begun(row: dict[str, Any], samples: list[Sample], limit: int) -> list[Search]:
    """The searches of a row: at most `limit` wrong samples, each with a right one beside it."""
    right = distinct(samples, ("right",))
    if not right:
        return []
    searches = []
    for rejected in distinct(samples, ("wrong",))[:limit]:
        lines = rejected["text"].splitlines(keepends=True)
        searches.append(Search(row, rejected, lines, right[0], good=0, bad=len(lines)))
    return searches


def _pairs(work: Work, searches: list[Search]) -> list[Pair]:
    config = work.recipe.pairs
    pairs = []
    for search in searches:
        if length_ratio(search.chosen, search.rejected) <= config.max_length_ratio:
            pairs.append(make_pair(config, search.row, search.chosen, search.rejected, "first_pit"))
    return pairs
