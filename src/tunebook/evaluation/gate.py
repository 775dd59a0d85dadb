"""What `tunebook evaluate --gate` holds a run to."""

from __future__ import annotations

from tunebook.evaluation.statistics import ALPHA, column, compare, mark
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
    folder = recipe.run_dir / "eval"
    first = read_records(folder / rule.first / "predictions.jsonl")
    second = read_records(folder / rule.second / "predictions.jsonl")
    same_items = column(first, "prompt") == column(second, "prompt") and column(first, "gold") == column(
        second, "gold"
    )
    if rule.slice is not None:
        first = [prediction for prediction in first if prediction["slice"] == rule.slice]
        second = [prediction for prediction in second if prediction["slice"] == rule.slice]
    if not first or not same_items:
        return "not both have been evaluated on the same items"
    # Items of which the checker says nothing, for one model's answer or for both, show nothing.
    marks_before = []
    marks_after = []
    for before, after in zip(map(mark, first), map(mark, second), strict=True):
        if before is not None and after is not None:
            marks_before.append(before)
            marks_after.append(after)
    if not marks_before:
        return "the held-out rows have no `answer` that could be checked"
    compared = compare(marks_before, marks_after)
    low, high = compared["interval"]
    if 100 * low <= rule.at_least:
        demand = f"the lower end must be above {rule.at_least:+.1f}"
    # Of few items the bootstrap interval is too narrow, so that the exact test must agree.
    elif rule.at_least >= 0 and compared["p"] >= ALPHA:
        demand = f"McNemar's p = {compared['p']:.2g} must be below {ALPHA}"
    else:
        return ""
    return (
        f"{100 * compared['difference']:+.1f} points "
        f"(95% interval {100 * low:+.1f} to {100 * high:+.1f}, n = {compared['n']}), {demand}"
    )
