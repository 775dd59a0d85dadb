"""Several models on the same items: which is best, and which of the others may be as good?"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from tunebook.evaluation.held_out import LOSSES
from tunebook.evaluation.report import predictions
from tunebook.evaluation.statistics import (
    ALPHA,
    bootstrap_interval,
    compare,
    holm,
    marks,
    mcnemar,
    score_interval,
)
from tunebook.evaluation.table import Table
from tunebook.generation.generate import read_records
from tunebook.recipe.errors import UserError

Scores = dict[Any, float]
"""Of each item a number; more is better."""


def item_scores(run: Path, model: str) -> Scores:
    """How well a model of a run answered each item: its score or right and wrong.

    Where nothing can check an answer, the log-probability per token of the held-out one.
    """
    # A loss is better where it is small.
    losses = read_records(run / "eval" / model / LOSSES)
    if losses:
        return {record["source_id"]: -record["nats"] / record["tokens"] for record in losses}
    return marks(predictions(run, model))


def same_items(scores: dict[str, Scores]) -> dict[str, list[float]]:
    """The scores of each model in one order of items.

    Raises UserError when they answered other items: nothing can be paired then.
    """
    # The first model's order is as good as any.
    items = list(next(iter(scores.values())))
    in_order = {}
    for name, by_item in scores.items():
        if by_item.keys() != set(items):
            raise UserError(f"{name} answered other items than {next(iter(scores))}: they cannot be compared")
        in_order[name] = [by_item[item] for item in items]
    return in_order


def corrected_pvalues(scores: dict[str, list[float]]) -> dict[frozenset[str], float]:
    """p of each pair of models, exact McNemar (or sign) tests, with Holm's correction for all pairs.

    The best is only known when all are looked at, and so any two of them may be the pair that is compared:
    among models that are alike, in at most 5% of sweeps is one of them called worse than another.
    """
    pairs = list(itertools.combinations(scores, 2))
    pvalues = []
    for first, second in pairs:
        changes = []
        for before, after in zip(scores[first], scores[second], strict=True):
            changes.append(after - before)
        won = sum(change > 0 for change in changes)
        lost = sum(change < 0 for change in changes)
        pvalues.append(mcnemar(won, lost))
    return {frozenset(pair): p for pair, p in zip(pairs, holm(pvalues), strict=True)}


def best_of(scores: dict[str, list[float]]) -> tuple[str, list[str]]:
    """The model of the highest mean, the first of equals; and those that are not shown to be worse."""
    best = max(scores, key=lambda name: sum(scores[name]))
    pvalues = corrected_pvalues(scores)
    others = [name for name in scores if name != best]
    return best, [name for name in others if pvalues[frozenset((best, name))] >= ALPHA]


def choose(scores: dict[str, list[float]]) -> dict[str, Any]:
    """The best of several models, and each of them against it.

    Returns:
        `n` items; `best`; `rivals`, which may be as good; and of each model in `models` its `mean` with
        `interval` and, but for the best, `difference`, `difference_interval` and the corrected `p`.
    """
    import numpy

    best, rivals = best_of(scores)
    pvalues = corrected_pvalues(scores)
    models: dict[str, Any] = {}
    for name, of_model in scores.items():
        values = numpy.asarray(of_model)
        # Log-probabilities are below 0, and no shares.
        is_share = values.min() >= 0
        interval = score_interval(of_model) if is_share else bootstrap_interval(values, seed=0)
        models[name] = {"mean": float(values.mean()), "interval": interval}
        if name != best:
            compared = compare(scores[best], of_model)
            models[name] |= {
                "difference": compared["difference"],
                "difference_interval": compared["interval"],
                "p": pvalues[frozenset((best, name))],
            }
    return {"n": len(scores[best]), "best": best, "rivals": rivals, "models": models}


def verdict(choice: dict[str, Any]) -> str:
    """In plain words whether one model is shown to be the best."""
    best, n, rivals = choice["best"], choice["n"], choice["rivals"]
    others = len(choice["models"]) - 1
    if not rivals:
        return (
            f"{best} is shown to be better than each of the {others} others (n = {n}). "
            "The best of several looks a little better than it is: look at the test split once."
        )
    return (
        f"No setting is shown to be the best. {best} has the highest mean, but {len(rivals)} of the {others} "
        f"others may be as good: {', '.join(rivals)}. Take the cheapest of them, or have more val rows "
        f"(n = {n})."
    )


def choice_table(
    settings: dict[str, dict[str, Any]], choice: dict[str, Any], failed: dict[str, str]
) -> Table:
    """A row for each setting: what was set, its mean with interval, and the best's lead over it."""
    table = Table(mean="mean (95% interval)", behind="against the best (95% interval)", p="p (Holm)")
    for name, setting in settings.items():
        cells = {f"`{key}`": value for key, value in setting.items()}
        of_model = choice["models"].get(name)
        if of_model is None:
            table.add(**cells, verdict=f"failed: {failed[name]}")
            continue
        low, high = of_model["interval"]
        cells["mean"] = f"{of_model['mean']:.3f} ({low:.3f} to {high:.3f})"
        if name == choice["best"]:
            table.add(**cells, verdict="highest mean" if choice["rivals"] else "**best**")
            continue
        # How far the best is ahead of this one.
        low, high = of_model["difference_interval"]
        cells["behind"] = f"{of_model['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        is_rival = name in choice["rivals"]
        table.add(**cells, p=f"{of_model['p']:.2g}", verdict="may be as good" if is_rival else "worse")
    return table
