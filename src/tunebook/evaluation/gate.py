"""What `tunebook evaluate --gate` holds a run to."""

from __future__ import annotations

from tunebook.evaluation.statistics import ALPHA, compare
from tunebook.generation.generate import read_records
from tunebook.recipe.sections import GateRule, Recipe


def gate(recipe: Recipe) -> list[str]:
    """What of the recipe's `evaluate.gate` does not hold, a line each; empty when all does."""
    failures = []
    for rule in recipe.evaluate.gate:
        name = f"{rule.second} against {rule.first}"
        if rule.slice:
            name += f" on {rule.slice}"
        if failure := _failure(recipe, rule):
            failures.append(f"{name}: {failure}")
    return failures


def _failure(recipe: Recipe, rule: GateRule) -> str:
    """Why a rule does not hold; empty when it does."""
    predictions = recipe.run_dir / "eval"
    first = read_records(predictions / rule.first / "predictions.jsonl")
    second = read_records(predictions / rule.second / "predictions.jsonl")
    same_items = [(p["prompt"], p["gold"]) for p in first] == [(p["prompt"], p["gold"]) for p in second]
    first_marks = [p["correct"] for p in first if rule.slice in (None, p["slice"])]
    second_marks = [p["correct"] for p in second if rule.slice in (None, p["slice"])]
    if not first_marks or not same_items:
        return "not both have been evaluated on the same items"
    compared = compare(first_marks, second_marks)
    low, high = (100 * bound for bound in compared["interval"])
    if low <= rule.at_least:
        demand = f"the lower end must be above {rule.at_least:+.1f}"
    elif rule.at_least >= 0 and compared["p"] >= ALPHA:  # of few items the interval is too narrow
        demand = f"McNemar's p = {compared['p']:.2g} must be below {ALPHA}"
    else:
        return ""
    return (
        f"{100 * compared['difference']:+.1f} points (95% interval {low:+.1f} to {high:+.1f}, "
        f"n = {compared['n']}), {demand}"
    )
