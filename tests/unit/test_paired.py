"""Paired statistics, held against scipy's and against what can be counted by hand."""

from __future__ import annotations

import tracemalloc

import numpy
import pytest
from fuzzing import scaled
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.evaluation.statistics import compare, equivalence, holm
from tunebook.evaluation.tables import comparison_table

ITEMS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@settings(max_examples=scaled(60), deadline=None)
@given(ITEMS)
def test_mcnemar_is_the_binomial_on_the_items_that_differ(items):
    from scipy.stats import binom  # here, because it takes seconds

    first, second = zip(*items, strict=True)
    found = compare(first, second)
    won, lost = (sum(b and not a for a, b in items), sum(a and not b for a, b in items))
    assert (found["won"], found["lost"], found["n"]) == (won, lost, len(items))
    assert found["difference"] == pytest.approx((won - lost) / len(items))
    fewer = min(won, lost)
    assert found["p"] == pytest.approx(min(1.0, 2 * binom.cdf(fewer, won + lost, 0.5)) if won + lost else 1.0)
    assert (
        found["interval"][0] <= found["difference"] + 1e-9
        and found["difference"] - 1e-9 <= found["interval"][1]
    )
    turned = compare(second, first)
    assert turned["p"] == pytest.approx(found["p"]) and turned["difference"] == pytest.approx(
        -found["difference"]
    )


def test_the_same_model_and_one_flipped_item():
    same = compare([1, 0, 1], [1, 0, 1])
    assert (same["difference"], same["p"], same["interval"], same["won"], same["lost"]) == (
        0,
        1.0,
        [0, 0],
        0,
        0,
    )
    one = compare([0] + [1] * 99, [1] * 100)
    assert (one["won"], one["lost"], one["p"], one["difference"]) == (1, 0, 1.0, 0.01)


def test_the_bootstrap_interval_is_the_normal_one_for_many_items():
    first, second = [0] * 60 + [1] * 20 + [1] * 920, [1] * 60 + [0] * 20 + [1] * 920
    found = compare(first, second)
    error = 1.96 * ((80 / 1000 - 0.04**2) / 1000) ** 0.5
    assert found["interval"] == pytest.approx([0.04 - error, 0.04 + error], abs=0.002)
    assert found["p"] == pytest.approx(8.6e-6, rel=0.02)
    assert found["detectable"] == pytest.approx(2.8 * 80**0.5 / 1000)


def test_many_items_are_resampled_in_parts_with_the_interval_of_all_at_once(monkeypatch):
    rng = numpy.random.default_rng(0)
    first, second = (rng.random(3000) < 0.5).astype(float), (rng.random(3000) < 0.52).astype(float)
    tracemalloc.start()
    found = compare(first, second)["interval"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.25e9  # 0.48 at once
    assert found == at_once(first, second)
    for scores in (1, 7001, 10**6):
        monkeypatch.setattr("tunebook.evaluation.statistics.DRAWN_AT_ONCE", scores)
        assert compare(first[:60], second[:60])["interval"] == at_once(first[:60], second[:60])


def at_once(first, second) -> list[float]:
    from scipy.stats import bootstrap

    found = bootstrap((second - first,), numpy.mean, n_resamples=9999, method="percentile", rng=0)
    return [float(bound) for bound in found.confidence_interval]


def test_the_table_says_it_in_points():
    row = {
        "first": "sft",
        "second": "dpo",
        "n": 600,
        "difference": 0.01,
        "interval": [0.0, 0.02],
        "won": 8,
        "lost": 2,
        "p": 0.109375,
    }
    table = comparison_table([row | {"detectable": 0.0148}]).markdown()
    assert table.splitlines()[-1] == "| sft → dpo | 600 | +1.0 (+0.0 to +2.0) | 8 | 2 | 0.11 | 1.5 |"


def test_items_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="3 and 2 items"):
        compare([1, 0, 1], [1, 0])


@settings(max_examples=scaled(60), deadline=None)
@given(
    st.lists(st.sampled_from([-1.0, -0.4, 0.0, 0.0, 0.3, 1.0]), min_size=2, max_size=300),
    st.floats(0.01, 0.3),
)
def test_equivalence_is_statsmodels_tost(change, margin):
    from statsmodels.stats.weightstats import ttost_paired

    changes = numpy.array(change)
    found = equivalence(change, margin)
    unseen = (1 - margin) ** len(change)
    if numpy.ptp(changes) == 0:
        assert found == pytest.approx(unseen if abs(changes[0]) < margin else 1.0)
        return
    wanted = ttost_paired(changes, numpy.zeros(len(change)), -margin, margin)[0]
    if set(change) <= {-1.0, 0.0, 1.0}:  # few items cannot show that right and wrong are the same
        wanted = max(wanted, unseen)
    assert found == pytest.approx(wanted, abs=1e-9)
    assert equivalence([-c for c in change], margin) == pytest.approx(found)


def test_two_copies_of_a_model_are_equivalent_once_there_are_enough_items():
    # (1 - 0.03)^98 = 0.0505 and (1 - 0.03)^99 = 0.0490: a loss of 3 points could hide among 98 equal answers.
    assert [equivalence([0.0] * n, 0.03) for n in (1, 98, 99)] == pytest.approx([0.97, 0.97**98, 0.97**99])
    assert 0.97**99 < 0.05 < 0.97**98
    # Of models equally good that differ in 20% of items 200 show no equivalence by 3 points, 5,000 do.
    rng = numpy.random.default_rng(1)
    change = rng.choice([-1.0, 0.0, 1.0], 5000, p=[0.1, 0.8, 0.1])
    assert equivalence(change[:200], 0.03) > 0.05 > equivalence(change, 0.03)


def test_models_that_are_apart_by_the_margin_are_seldom_called_equivalent():
    rng = numpy.random.default_rng(0)
    wrongly = 0
    for _ in range(400):
        change = rng.choice([-1.0, 0.0, 1.0], 400, p=[0.09, 0.85, 0.06])
        wrongly += equivalence(change, 0.03) < 0.05
    assert wrongly <= 400 * 0.08  # 5%, and three standard errors


@settings(max_examples=scaled(60), deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels(pvalues):
    from statsmodels.stats.multitest import multipletests

    assert holm(pvalues) == pytest.approx(list(multipletests(pvalues, method="holm")[1]))
    # Two tests at 3%: each alone would be shown, together neither is.
    assert holm([0.03, 0.03]) == pytest.approx([0.06, 0.06])
