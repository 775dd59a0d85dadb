"""Several trainings taken together: what they show on these items, and what of training once more.

uv run tunebook report runs/seed-0 runs/seed-1 runs/seed-2
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from tunebook.evaluation.statistics import ALPHA, column, mcnemar
from tunebook.evaluation.table import Table
from tunebook.evaluation.tables import p_value

EXPLAINED = (
    "`p` is McNemar's test of the items that all runs won and lost together: it speaks of these models on "
    "these items. The intervals are Student's over the runs: they speak of training with other seeds. "
    "`spread` is the standard deviation over the runs, `by items alone` what it would be if nothing but the "
    "choice of items differed."
)


def by_step(summaries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The comparisons of all runs, pooled: {"sft → dpo": ...}, from their `eval/summary.json`."""
    steps: dict[str, list[dict[str, Any]]] = {}
    for summary in summaries:
        for compared in summary["comparisons"]:
            steps.setdefault(f"{compared['first']} → {compared['second']}", []).append(compared)
    return {step: pool(comparisons) for step, comparisons in steps.items()}


def pool(comparisons: list[dict[str, Any]]) -> dict[str, Any]:
    """One step in several runs.

    Returns:
        `differences` of the runs and their `mean`; `won` and `lost` items of all runs with McNemar's `p`.
        Of two runs and more also their `spread` (standard deviation), `by_items`, the spread that the items
        alone would make, the `interval` of the mean and `next`, where one more run is expected (both 95%).
    """
    from scipy.stats import t

    differences = column(comparisons, "difference")
    runs = len(differences)
    won = sum(column(comparisons, "won"))
    lost = sum(column(comparisons, "lost"))
    pooled = {
        "runs": runs,
        "differences": differences,
        "mean": statistics.mean(differences),
        "won": won,
        "lost": lost,
        "p": mcnemar(won, lost),
    }
    if runs == 1:
        return pooled
    mean, spread = pooled["mean"], statistics.stdev(differences)
    # What would be left of the spread if training came out the same each time.
    by_items = math.sqrt(statistics.mean(_item_variance(compared) for compared in comparisons))
    quantile = t.ppf(0.975, runs - 1)
    half = quantile * spread / math.sqrt(runs)
    # One more run varies by itself, and the mean is known no better than by these runs. Two runs may be
    # alike by luck: the choice of items alone makes them vary by so much.
    half_of_next = max(quantile * spread, 1.96 * by_items) * math.sqrt(1 + 1 / runs)
    return pooled | {
        "spread": spread,
        "by_items": by_items,
        "interval": [mean - half, mean + half],
        "next": [mean - half_of_next, mean + half_of_next],
    }


def _item_variance(compared: dict[str, Any]) -> float:
    """The variance of a run's difference that comes from its items, from its 95% interval."""
    low, high = compared["interval"]
    return float(((high - low) / (2 * 1.96)) ** 2)


def pooled_table(steps: dict[str, dict[str, Any]]) -> Table:
    """Each step over the runs, in points."""
    table = Table(mean="mean (95% interval)", by_items="by items alone", p="p (pooled McNemar)")
    for step, pooled in steps.items():
        cells = {"mean": f"{100 * pooled['mean']:+.1f}", "spread": "–", "by_items": "–"}
        if "interval" in pooled:
            low, high = pooled["interval"]
            cells["mean"] += f" ({100 * low:+.1f} to {100 * high:+.1f})"
            cells["spread"] = f"{100 * pooled['spread']:.1f}"
            cells["by_items"] = f"{100 * pooled['by_items']:.1f}"
        table.add(
            step=step,
            runs=pooled["runs"],
            differences=", ".join(f"{100 * value:+.1f}" for value in pooled["differences"]),
            **cells,
            won=pooled["won"],
            lost=pooled["lost"],
            p=p_value(pooled["p"]),
        )
    return table


def claim(step: str, pooled: dict[str, Any]) -> str:
    """What may be said of a step after these runs, in a plain sentence or two."""
    runs = pooled["runs"]
    points = f"{100 * pooled['mean']:+.1f} points"
    if runs == 1:
        return f"**{step}**: {points} in one run. What another seed would give is not known."
    if pooled["spread"] == 0:
        return f"**{step}**: {points}, the same in all {runs} runs: nothing is known of other seeds."
    agreeing = sum(difference * pooled["mean"] > 0 for difference in pooled["differences"])
    word = "better" if pooled["mean"] > 0 else "worse"
    low, high = pooled["interval"]
    shown_by_runs = not low <= 0 <= high
    if pooled["p"] >= ALPHA:
        verdict = "A difference is not shown."
    elif shown_by_runs:
        verdict = "This is more than the spread between the runs."
    else:
        verdict = (
            "These models differ on these items, but the runs spread by "
            f"{100 * pooled['spread']:.1f} points: {runs} runs do not show that training again "
            f"makes it {word}."
        )
    # What a reader wants to know before training once more, in points.
    low, high = (100 * bound for bound in pooled["next"])
    return (
        f"**{step}**: {points} on average, {word} in {agreeing} of {runs} runs. {verdict} "
        f"One more training is expected between {low:+.1f} and {high:+.1f} points (95%)."
    )
