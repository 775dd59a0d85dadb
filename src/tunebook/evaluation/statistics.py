"""Two models on the same items: is one better, by how much, and what could so many items show at all?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from tunebook.runs.stages import CONTROL

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # below it a difference counts as shown
FEW = 20  # below it one item is more than 5 points, and only what is beyond doubt is said to be shown
BEYOND_DOUBT = 0.001  # p of 11 items out of 11
RESAMPLES = 9999

# Scores in memory at a time: all resamples of 100,000 items together would take 16 GB. The interval does not
# depend on it.
DRAWN_AT_ONCE = 10**7


def compare(first: Sequence[float], second: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """The second model's scores (from 0 to 1 an item) against the first's, item by item.

    Returns:
        `n` items, `won` and `lost` ones; `difference` of the means with its `interval`; `p`; `detectable`.
    """
    import numpy

    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} items cannot be paired")
    change = numpy.asarray(second, float) - numpy.asarray(first, float)
    n = len(change)
    won = int((change > 0).sum())
    lost = int((change < 0).sum())
    return {
        "n": n,
        "difference": float(change.mean()),
        "interval": bootstrap_interval(change, seed),
        "won": won,
        "lost": lost,
        "p": mcnemar(won, lost),
        # Of right and wrong alone the sum is that of the items that differ.
        "detectable": detectable(float((change**2).sum()), n),
    }


def bootstrap_interval(change: Any, seed: int) -> list[float]:
    """Percentile-bootstrap interval (Efron 1979) of the mean of `change`, an array of one number an item."""
    import numpy
    from scipy.stats import bootstrap

    n = len(change)
    if n == 1:  # nothing to resample: it may be anything
        return [-1.0, 1.0]
    if not change.any():  # every resample is the same
        return [0.0, 0.0]
    result = bootstrap(
        (change,),
        numpy.mean,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // n),
        confidence_level=LEVEL,
        method="percentile",
        rng=seed,
    )
    return [float(bound) for bound in result.confidence_interval]


def score_interval(scores: Sequence[float]) -> list[float]:
    """Percentile-bootstrap interval of the mean of scores from 0 to 1."""
    import numpy

    if len(scores) == 1:  # nothing to resample: it may be anything
        return [0.0, 1.0]
    return bootstrap_interval(numpy.asarray(scores, float), seed=0)


def length_controlled(scores: Sequence[float], longer: Sequence[float]) -> float | None:
    """The win rate that is left when both answers are of one length (Dubois et al. 2024, AlpacaEval 2).

    A logistic regression of the scores on the difference of the lengths, read where that is 0.

    Args:
        scores: Of each comparison 1 (the second answer won), 0 or 0.5.
        longer: Of each comparison by how many characters the second answer is longer.

    Returns:
        None where one model's answers are always longer: then length and quality cannot be told apart.
    """
    import numpy
    from scipy.optimize import minimize

    wins = numpy.asarray(scores, float)
    difference = numpy.asarray(longer, float)
    if difference.min() >= 0 or difference.max() <= 0:
        return None if difference.any() else float(wins.mean())
    lengths = numpy.tanh(difference / difference.std())

    def loss(weights: Any) -> float:
        logits = weights[0] + weights[1] * lengths
        # Weak priors keep both finite where length alone decides. That on the intercept is the stronger one:
        # what length can explain is put down to length.
        prior = 0.1 * weights[0] ** 2 + 0.001 * weights[1] ** 2
        return float((numpy.logaddexp(0, logits) - wins * logits).sum() + prior)

    best = minimize(loss, numpy.zeros(2)).x
    return float(1 / (1 + math.exp(-best[0])))


def ratio_interval(amounts: Sequence[float], sizes: Sequence[float], seed: int = 0) -> list[float]:
    """Percentile-bootstrap interval, over items, of sum(amounts) / sum(sizes): a mean per token, say."""
    import numpy
    from scipy.stats import bootstrap

    if len(amounts) == 1:  # nothing to resample: it may be anything
        return [-math.inf, math.inf]

    def ratio(amount: Any, size: Any, axis: int) -> Any:
        return amount.sum(axis) / size.sum(axis)

    arrays = (numpy.asarray(amounts, float), numpy.asarray(sizes, float))
    if not arrays[0].any():  # every resample is the same
        return [0.0, 0.0]
    result = bootstrap(
        arrays,
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, DRAWN_AT_ONCE // len(amounts)),
        confidence_level=LEVEL,
        method="percentile",
        rng=seed,
    )
    return [float(bound) for bound in result.confidence_interval]


def mcnemar(won: int, lost: int) -> float:
    """p of the exact McNemar test: a two-sided binomial test on the items that differ.

    Of scores between 0 and 1 it is the sign test.
    """
    from scipy.stats import binomtest

    if won + lost == 0:
        return 1.0
    return float(binomtest(won, won + lost).pvalue)


def detectable(disagreements: float, n: int) -> float:
    """The difference that n items, so many of which differ, show with 80% power at 5% (Connor 1987)."""
    # 2.8 = 1.96 + 0.84; six wins to none are the fewest that can be significant.
    return max(2.8 * math.sqrt(disagreements), 6.0) / n


def equivalence(change: Sequence[float], margin: float) -> float:
    """p of two one-sided t-tests (Schuirmann 1987): below 5% the mean of `change` lies within ± `margin`.

    Args:
        change: How much an item's score changed, paired, one number an item.
        margin: On the scale of the scores: 0.03 are 3 points.
    """
    import numpy
    from scipy.stats import ttest_1samp

    changes = numpy.asarray(change, float)
    # Were the models apart by the margin in right and wrong, at least such a share of items would differ:
    # the chance that so many items show no difference at all.
    unseen = float((1 - margin) ** len(changes))
    if numpy.ptp(changes) == 0:  # no variance to go by
        return unseen if abs(changes[0]) < margin else 1.0
    above = ttest_1samp(changes, -margin, alternative="greater").pvalue
    below = ttest_1samp(changes, margin, alternative="less").pvalue
    p = float(max(above, below))
    is_right_or_wrong = bool(numpy.isin(changes, (-1, 0, 1)).all())
    return max(p, unseen) if is_right_or_wrong else p


def holm(pvalues: Sequence[float]) -> list[float]:
    """The p-values of several tests, each as large as their number makes it (Holm 1979); same order."""
    ordered = sorted(range(len(pvalues)), key=lambda i: pvalues[i])
    adjusted = [1.0] * len(pvalues)
    largest = 0.0
    for rank, i in enumerate(ordered):
        # The smallest is held against all tests, the next against all but one, ...
        largest = max(largest, (len(pvalues) - rank) * pvalues[i])
        adjusted[i] = min(1.0, largest)
    return adjusted


def marks(predictions: dict[Any, dict[str, Any]]) -> dict[Any, float]:
    """How well each item was answered (`mark`), of those of which it is known."""
    known = {}
    for item, prediction in predictions.items():
        score = mark(prediction)
        if score is not None:
            known[item] = score
    return known


def mark(prediction: dict[str, Any]) -> float | None:
    """How well an item was answered: its score, or 1 for right and 0 for wrong; None: nothing is known."""
    score: float | None = prediction.get("score", prediction["correct"])
    return score


def is_graded(results: dict[str, dict[str, Any]]) -> bool:
    """Whether the answers of some stage have scores between 0 and 1, by the stages' summaries."""
    scored = [summary for summary in results.values() if "score" in summary]
    return column(scored, "score") != column(scored, "accuracy")


def column(records: Iterable[dict[str, Any]], name: str) -> list[Any]:
    """One field of all records."""
    return [record[name] for record in records]


def compared_steps(scores: dict[str, dict[Any, float]]) -> list[dict[str, Any]]:
    """Each model against the one before it, the last against the first, and DPO against its control.

    Args:
        scores: {model: {item: score}}, the same items for each.
    """
    # One order of items for all, that of the first model.
    items = list(next(iter(scores.values())))
    in_order = {name: [scores[name][item] for item in items] for name in scores}
    comparisons = []
    for first, second in pairs_of_models(list(scores)):
        compared = compare(in_order[first], in_order[second])
        comparisons.append({"first": first, "second": second, **compared})
    return comparisons


def pairs_of_models(names: list[str]) -> list[tuple[str, str]]:
    """Which models are compared: base → sft, sft → dpo, and base → dpo.

    Where DPO has a control also sft → control, which is what likelihood alone has done, and control → dpo,
    which is what preference has added to it.
    """
    chain = [name for name in names if name != CONTROL]
    pairs = list(itertools.pairwise(chain))
    if len(chain) > 2:
        pairs.append((chain[0], chain[-1]))
    if CONTROL in names and "dpo" in chain:
        before = chain[chain.index("dpo") - 1]
        pairs += [(before, CONTROL), (CONTROL, "dpo")]
    return pairs


def wilson(right: float, n: int) -> list[float]:
    """Wilson's (1927) score interval at 95% of a share."""
    from scipy.stats import binomtest

    interval = binomtest(round(right), n).proportion_ci(method="wilson")
    return [interval.low, interval.high]
