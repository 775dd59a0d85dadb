"""What is computed once for several rows: the same numbers as without, for fewer tokens.

On a small Llama of random weights.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tunebook.models.cpu import shared_prefixes

TOKENS = st.lists(st.integers(1, 3), min_size=1, max_size=12)


def expanded(rows: list[list[int]], how: shared_prefixes.Plan) -> list[list[int]]:
    """The rows put together again out of a plan's parts."""
    out = []
    for i, row in enumerate(rows):
        pair = i % len(how.ends)
        middle = rows[pair][how.start : how.ends[pair]]
        out.append(rows[0][: how.start] + middle + row[how.ends[pair] :])
    return out


@given(st.lists(TOKENS, min_size=2, max_size=8), TOKENS)
def test_every_plan_puts_the_rows_together_again_and_costs_less(rows, beginning):
    rows = [beginning + row for row in rows]
    how = shared_prefixes.plan(rows)
    if how is None:
        return
    lengths = [len(row) for row in rows]
    assert 2 * len(how.ends) == len(rows)
    assert expanded(rows, how) == rows
    assert all(how.start <= how.ends[i % len(how.ends)] < length for i, length in enumerate(lengths))
    assert how.cost(lengths) <= 0.9 * max(lengths) * len(rows)


def test_pairs_are_found_and_one_long_beginning_does_not_pad_the_others():
    system, first, second = [1] * 20, [2] * 30, [3] * 30
    rows = [
        system + first + [4] * 40,
        system + second + [5] * 20,
        system + first + [6] * 20,
        system + second + [7] * 40,
    ]
    how = shared_prefixes.plan(rows)
    assert how == shared_prefixes.Plan(20, [50, 50])
    assert how.cost([len(r) for r in rows]) == 20 + 2 * 30 + 4 * 40  # instead of 4 x 90
    assert shared_prefixes.plan([[1, 2, 3, 4], [5, 6, 7, 8]]) is None
