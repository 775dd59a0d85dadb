"""The verifier: right on what models write, never fooled by a missing answer."""

from __future__ import annotations

import threading

import pytest
from fuzzing import scaled
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.checkers.maths import Verdict, boxed, equal, normalise, verify

SAME = [
    ("42", "42"), ("42", "42.0"), ("42", "$42$"), ("-3", "-3"), ("7", "7."), ("1234", "1,234"),
    ("60", r"60^\circ"), ("60", "60°"), ("60", "60 degrees"), ("60", r"60^{\circ}"),
    ("12", "12 cm"), ("12", r"12\text{ cm}"), ("12", r"12 \mathrm{cm}^2"),
    ("12", "12 cm^2"), ("12", "12 square cm"),
    ("0.5", r"\frac{1}{2}"), (r"\frac{1}{2}", "1/2"), ("10", "5+5"), (r"\sqrt{16}", "4"),
    (r"2\sqrt{3}", r"\sqrt{12}"), (r"\sqrt{234}", r"3\sqrt{26}"), (r"49\pi", r"49 \pi"), (r"49\pi", "49π"),
    ("3", "x=3"), ("x=3", "3"), ("75", r"\angle C = 75"),
]  # fmt: skip
DIFFERENT = [
    ("42", "43"), ("42", ""), ("42", " "), ("42", r"\text{unknown}"), ("60", r"61^\circ"),
    (r"\sqrt{12}", r"\sqrt{13}"), (r"49\pi", "49"), ("0.5", r"\frac{1}{3}"), ("1/3", "0.33"), ("6", "6,7"),
    ("12", "x"), ("5", "{5"), ("5", r"\frac{5}{0}"), ("3", "3" * 500), ("", ""),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_the_same_value(gold, answer):
    assert equal(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_not_the_same_value(gold, answer):
    assert not equal(gold, answer)


def test_where_the_answer_is_found():
    assert verify(r"so \boxed{7} or rather \boxed{8}", "8") == Verdict(True, "8", "boxed")
    assert verify(r"so \boxed{7} or rather \boxed{8}", "7").correct is False
    assert verify("12 + 3 = 15", "15") == Verdict(True, "15", "last number")
    assert verify("12 + 3 = 15", "15", boxed_only=True) == Verdict(False, None, "none")
    assert verify("I do not know.", "15") == Verdict(False, None, "none")
    assert verify(r"\boxed{} 15", "15") == Verdict(False, "", "boxed")
    assert verify(r"about 15 \boxed{15", "15").how == "last number"  # never closed


def test_boxed():
    assert boxed(r"\boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert boxed(r"\boxed {3}") == "3"
    assert boxed(r"\boxed{a{b}c} and \boxed{open") == "a{b}c"
    assert boxed("nothing") is None


def test_outside_the_main_thread():
    results = []
    threads = [
        threading.Thread(
            target=lambda i=i: results.append(equal(rf"\sqrt{{{i * i * 3}}}", rf"{i}\sqrt{{3}}"))
        )
        for i in range(2, 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6


@settings(deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(1, 50))
def test_numbers_agree_with_arithmetic(n, d):
    assert equal(str(n), f"{n}.0")
    assert equal(f"{n}/{d}", rf"\frac{{{n}}}{{{d}}}")
    assert not equal(str(n), str(n + 1))


@settings(max_examples=scaled(300), deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_safe(text):
    boxed(text)
    normalise(text)
    assert verify(f"noise {text}", "no such answer", boxed_only=True).correct is False
