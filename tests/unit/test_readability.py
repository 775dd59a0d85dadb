"""The script that counts how the package reads, and the package against its limits."""

from __future__ import annotations

import textwrap

import readability

SAMPLE = '''
    """A module."""

    LIMIT = 3  # of rows
    """An attribute's text."""


    def squares(rows):
        """A docstring
        of two lines."""
        # Why it is so.
        first, last = rows[0], rows[-1]
        flat = [cell for row in rows for cell in row]
        return {n: n * n for n in flat} if first else last if last else None  # noqa: X1
'''


def test_what_is_counted():
    counts = readability.Counts()
    counts.add("room/file.py", textwrap.dedent(SAMPLE).strip() + "\n")
    assert (counts.lines, counts.code, counts.comments, counts.too_long) == (13, 5, 2, 0)
    assert (counts.comprehensions, counts.double_comprehensions) == (2, 1)
    assert (counts.conditionals, counts.nested_conditionals, counts.unpackings) == (2, 1, 1)
    assert (counts.functions, counts.files, counts.rooms()) == ([4], {"room/file.py": 13}, {"room": 13})


def test_a_figure_over_its_limit_is_marked():
    over = readability.Figure("lines", 12, at_most=10)
    assert over.is_over and str(over).endswith("12   at most 10  <- over")
    few = readability.Figure("comments per 100", 5.5, at_least=6, digits=2)
    assert few.is_over and "5.50   at least 6" in str(few)
    assert not readability.Figure("lines", 12).is_over


def test_the_package_is_within_its_limits():
    rows = readability.figures(readability.measure(readability.PACKAGE))
    assert [str(row) for row in rows if row.is_over] == []
