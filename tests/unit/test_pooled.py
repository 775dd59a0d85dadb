"""Several runs taken together, held against statsmodels and against trainings without an effect."""

from __future__ import annotations

import numpy
import pytest
from fuzzing import scaled
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.evaluation import pooled
from tunebook.evaluation.compare import compare_runs
from tunebook.recipe.files import ROOT


def compared(won: int, lost: int, n: int = 600) -> dict:
    """A comparison as `eval/summary.json` has it, with the normal interval."""
    difference = (won - lost) / n
    half = 1.96 * ((won + lost) / n - difference**2) ** 0.5 / n**0.5
    interval = [difference - half, difference + half]
    outcome = {"won": won, "lost": lost, "difference": difference, "interval": interval}
    return {"first": "sft", "second": "dpo", "n": n, **outcome}


@settings(max_examples=scaled(60), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), min_size=2, max_size=6))
def test_pooled_tests_are_those_of_statsmodels(runs):
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.weightstats import DescrStatsW

    found = pooled.pool([compared(won, lost) for won, lost in runs])
    won, lost = (sum(counts) for counts in zip(*runs, strict=True))
    wanted = mcnemar([[0, lost], [won, 0]], exact=True).pvalue if won + lost else 1.0
    assert found["p"] == pytest.approx(min(1.0, wanted))
    over_runs = DescrStatsW([(won - lost) / 600 for won, lost in runs])
    assert found["interval"] == pytest.approx(list(over_runs.tconfint_mean()))
    # One more run varies more than the mean of those that were seen.
    half, half_of_next = (bounds[1] - found["mean"] for bounds in (found["interval"], found["next"]))
    assert half_of_next >= half * (len(runs) + 1) ** 0.5 - 1e-12


def test_what_may_be_claimed():
    def claim(*runs: tuple[int, int]) -> str:
        return pooled.claim("sft → dpo", pooled.pool([compared(*run) for run in runs]))

    assert claim((90, 30)).endswith("+10.0 points in one run. What another seed would give is not known.")
    assert "the same in all 2 runs: nothing is known of other seeds" in claim((90, 30), (90, 30))
    agreeing = claim((90, 30), (96, 30), (84, 30))
    assert "+10.0 points on average, better in 3 of 3 runs. This is more than the spread" in agreeing
    assert agreeing.endswith("One more training is expected between +5.0 and +15.0 points (95%).")
    # Won and lost together are far apart, but by one run alone.
    apart = claim((130, 10), (40, 40), (40, 34))
    assert "the runs spread by 11.3 points: 3 runs do not show that training again makes it better" in apart
    assert "worse in 2 of 3 runs. A difference is not shown." in claim((30, 36), (32, 36), (38, 36))


def test_trainings_without_an_effect_are_seldom_claimed_to_have_one():
    """Each training moves its model by chance (4 points), so that the items alone show a difference often."""
    rng = numpy.random.default_rng(0)
    claims = differences = 0
    for _ in range(300):
        runs = []
        for effect in rng.normal(0, 0.04, 3):
            won = rng.binomial(600, 0.12 + effect / 2)
            lost = rng.binomial(600, 0.12 - effect / 2)
            runs.append(compared(int(won), int(lost)))
        found = pooled.pool(runs)
        differences += found["p"] < 0.05
        claims += "more than the spread" in pooled.claim("sft → dpo", found)
    assert claims <= 300 * 0.05 < 300 * 0.2 < differences


def test_recorded_runs_are_pooled_from_their_summaries():
    runs = [ROOT / "resources" / name for name in ("smollm2-math-new-words", "smollm2-math-seed-1")]
    text = compare_runs(runs)
    assert "| sft → dpo | 2 | +9.5, +9.7 | +9.6 (+8.5 to +10.6) | 0.1 | 2.0 | 213 | 98 | < 0.0001 |" in text
    assert "other settings" not in text and "same seeds" not in text
    control = compare_runs([runs[0], ROOT / "resources" / "smollm2-math-new-words-control"])
    assert "The runs differ in other settings than their seeds (below)" in control
    assert "The runs have the same seeds" in compare_runs([runs[0], runs[0]])
