"""Samples of one prompt ranked by the recipe's judge: the best of them against the worst."""

from __future__ import annotations

import itertools

from tunebook.checkers.judge import Comparison, Judge, reliability, warn_of_bias
from tunebook.pairs.pair import Sample, distinct
from tunebook.pairs.work import Work


def rank(work: Work, judge: Judge, samples: list[Sample], per_prompt: int) -> None:
    """Give each usable sample its `score`: the share of comparisons with the prompt's others that it wins.

    A tie is half a win. What the judge says is kept in `judged.jsonl`.

    Args:
        samples: The samples of each row of `work.rows`, one row after the other.
        per_prompt: How many there are of a row.
    """
    couples = []
    comparisons = []
    for i, row in enumerate(work.rows):
        of_row = samples[i * per_prompt : (i + 1) * per_prompt]
        # Samples that say the same are compared once.
        for first, second in itertools.combinations(distinct(of_row, ("judged",)), 2):
            couples.append((first, second))
            comparisons.append(Comparison(row["prompt"], first["text"], second["text"]))
    outcomes = judge.compare(work.folder / "judged.jsonl", comparisons, "judging")
    points: dict[int, list[float]] = {}
    for (first, second), outcome in zip(couples, outcomes, strict=True):
        if outcome.score is not None:
            points.setdefault(id(first), []).append(1 - outcome.score)
            points.setdefault(id(second), []).append(outcome.score)
    for sample in samples:
        won = points.get(id(sample))
        sample["score"] = sum(won) / len(won) if won else None
    facts = reliability(comparisons, outcomes)
    warn_of_bias(facts)
    work.record["judge"] = {**facts, **vars(judge.usage)}
