"""What `tunebook evaluate --gate` holds a run to."""

from __future__ import annotations

from tunebook.evaluation.statistics import ALPHA, compare
from tunebook.generation.generate import read_records
from tunebook.recipe.sections import Recipe


def gate(recipe: Recipe) -> list[str]:
    """What of the recipe's `evaluate.gate` does not hold, a line each; empty when all does."""
    failed = []
    for rule in recipe.evaluate.gate:
        pair = [
            read_records(recipe.run_dir / "eval" / name / "predictions.jsonl")
            for name in (rule.first, rule.second)
        ]
        first, second = ([p["correct"] for p in found if rule.slice in (None, p["slice"])] for found in pair)
        asked = [[(p["prompt"], p["gold"]) for p in found] for found in pair]
        what = f"{rule.second} against {rule.first}" + (f" on {rule.slice}" if rule.slice else "")
        if not first or asked[0] != asked[1]:
            failed.append(f"{what}: not both have been evaluated on the same items")
            continue
        c = compare(first, second)
        low, high = (100 * bound for bound in c["interval"])
        if low <= rule.at_least:
            wanted = f"the lower end must be above {rule.at_least:+.1f}"
        elif rule.at_least >= 0 and c["p"] >= ALPHA:  # of few items the interval is too narrow
            wanted = f"McNemar's p = {c['p']:.2g} must be below {ALPHA}"
        else:
            continue
        failed.append(
            f"{what}: {100 * c['difference']:+.1f} points (95% interval {low:+.1f} to {high:+.1f}, n = {c['n']}), {wanted}"
        )
    return failed
