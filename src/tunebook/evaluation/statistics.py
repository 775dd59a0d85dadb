"""Two models on the same items: is one better, by how much, and what could so many items show at all?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

LEVEL, ALPHA = 0.95, 0.05


RESAMPLES = 9999


DRAWN_AT_ONCE = 10**7
"""Scores in memory, of all resamples: those of 100,000 items together would take 16 GB. The interval does not depend on it."""


def compare(first: Sequence[float], second: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """The second model's scores (0 or 1 an item) against the first's, item by item.

    `difference` of the means with a paired percentile-bootstrap `interval` (Efron 1979); `won` and `lost` items; `p` of the
    exact McNemar test (two-sided binomial on the items that differ); `detectable`: the difference that so many items with so
    many disagreements would show with 80% power at 5% (Connor 1987).
    """
    import numpy
    from scipy.stats import binomtest, bootstrap

    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} items cannot be paired")
    change = numpy.asarray(second, float) - numpy.asarray(first, float)
    n, won, lost = len(change), int((change > 0).sum()), int((change < 0).sum())
    interval = [0.0, 0.0] if n > 1 else [-1.0, 1.0]
    if n > 1 and change.any():
        how = {"n_resamples": RESAMPLES, "confidence_level": LEVEL, "method": "percentile", "rng": seed}
        found = bootstrap((change,), numpy.mean, batch=max(1, DRAWN_AT_ONCE // n), **how)
        interval = [float(bound) for bound in found.confidence_interval]
    return {
        "n": n,
        "difference": float(change.mean()),
        "interval": interval,
        "won": won,
        "lost": lost,
        "p": float(binomtest(won, won + lost).pvalue) if won + lost else 1.0,
        "detectable": max(2.8 * math.sqrt(won + lost), 6.0)
        / n,  # 1.96 + 0.84; six wins to none are the fewest that can be significant
    }


def compared_steps(found: dict[str, dict[Any, float]]) -> list[dict[str, Any]]:
    """Each model against the one before it, and the last against the first; `found`: {model: {item: score}}, the same items for each."""
    names = list(found)
    steps = [*itertools.pairwise(names), *([(names[0], names[-1])] if len(names) > 2 else [])]
    scores = {name: [found[name][item] for item in found[names[0]]] for name in names}
    return [{"first": a, "second": b, **compare(scores[a], scores[b])} for a, b in steps]


def wilson(right: float, n: int) -> list[float]:
    """Wilson's (1927) score interval at 95% of a share."""
    from scipy.stats import binomtest

    interval = binomtest(round(right), n).proportion_ci(method="wilson")
    return [interval.low, interval.high]
