"""Rows and what a function says of them, one by one and in order."""

from __future__ import annotations

import sys

import pytest

from tunebook.recipe.errors import UserError
from tunebook.runs import blocks


def test_a_row_is_worked_on_when_it_is_asked_for():
    """Nothing is held in memory, and the function is made once."""
    read, made = [], []

    def numbers():
        for number in range(1_000):
            read.append(number)
            yield number

    def build():
        made.append(True)
        return lambda number: number * number

    results = blocks.each(numbers(), build, "local")
    assert [next(results) for _ in range(3)] == [(0, 0), (1, 1), (2, 4)]
    assert read == [0, 1, 2] and made == [True]


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="uv sync --extra ray"):
        list(blocks.each([1], lambda: str, "ray"))
