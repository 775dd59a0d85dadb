"""The verifier is never stuck: its process is ended when it takes too long, and started again."""

from __future__ import annotations

import time

import pytest
from fuzzing import cases, text
from hypothesis import example, given
from hypothesis import strategies as st

from tunebook.checkers import maths
from tunebook.checkers.formulas import algebra
from tunebook.checkers.maths import equal
from tunebook.generation import answers


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "9^9^9^9",
        "10^{10^{10}}",
        r"\sum_{n=1}^{10^{12}} n^{n}",
        "(" * 190,
        r"\frac{" * 60,
        "2^{99999999999}!",
    ],
)
def test_never_hangs(monkeypatch, answer):
    started = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(algebra, "TIMEOUT_S", 0.5)
        assert not equal("7", answer)
    assert time.monotonic() - started < 60
    assert equal(r"\sqrt{50}", r"5\sqrt{2}")  # and works afterwards


PIECES = [
    "9", "1", "0.5", "\\frac{", "\\sqrt{", "\\boxed{", "\\text{", "{", "}", "(", ")", "+", "-", "/", "x", "=",
    "\\pi", ",", "٣", "²", "½", "$", "|", "[", "\\",
]  # fmt: skip


@cases(40)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | text)
@example("\\boxed{" * 20_000)  # a quarter of a minute, with the square of its length
@example("\\text{" + " " * 100_000)
@example("{" * 100_000 + "}" * 100_000)
@example("9^{9^{9}}")
def test_answers_to_the_verifier(answer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algebra, "TIMEOUT_S", 2.0)
        started = time.thread_time()
        assert maths.equal("17", answer) in (True, False)
        assert maths.verify(answer, "17", boxed_only=True).how in ("boxed", "none")
        answers.repeats(answer)
        assert time.thread_time() - started < 3
