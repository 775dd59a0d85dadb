"""The verifier: right on what models write, never fooled by a missing answer."""

from __future__ import annotations

import threading
import time

import pytest
from fuzzing import scaled
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebook.checkers.maths import Verdict, boxed, equal, is_words, normalise, verify

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


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("The capital is Paris.", "Paris", True),
        ("The capital is PARIS", "paris.", True),
        ("The capital is Rome.", "Paris", False),
        ("Paris is old. The capital is Rome.", "Paris", False),
        ("Parisians say so.", "Paris", False),
        ("It was founded early. New York City has it.", "New York", True),
        ("Seven has no divisors but itself and one. Answer: Yes", "Yes", True),
        ("Yes. Seven has no divisors.", "Yes", True),
        ("No. Seven has no divisors.", "Yes", False),
        ("The answer is B.", "B", True),
        ("The answer is C.", "B", False),
        ("B, since it comes later.", "B", True),
        ("B, since A comes earlier.", "A", False),
        ("A is too small, so it is B", "A", False),
        ("A dog has four legs, so the answer is (b)", "B", True),
        ("B) Because it is the larger one.", "B", True),
        ("B. It has more of them than the others.", "B", True),
        ("A cat cannot fly.", "A", False),
        (r"So \boxed{\text{Paris}}", "Paris", True),
        (r"So \boxed{B}", "b", True),
        (r"Paris. So \boxed{Rome}", "Paris", False),
        ("Because of Rayleigh scattering.", "because of Rayleigh scattering", True),
        ("It is 42.195 km long.", "It is 42.195 km long.", True),
        ("It is 43 km long.", "It is 42.195 km long.", False),
        ("法国的首都是巴黎。", "巴黎", True),
        ("法国的首都是罗马。", "巴黎", False),
        ("It was written by J. W. Goethe.", "Goethe", True),
        ("Das war Müller.", "müller", True),
        ("...", "Yes", False),
    ],
)
def test_a_word_a_letter_or_a_sentence_is_compared_as_such(text, gold, correct):
    assert verify(text, gold).correct is correct
    if "boxed" not in text:
        assert verify(text, gold, boxed_only=True) == Verdict(False, None, "none")


@pytest.mark.parametrize("text", ["✓ " * 100_000, "a " * 100_000, "*" * 100_000, "Yes" + "." * 100_000 + "x"])
def test_words_are_looked_for_in_linear_time(text):
    started = time.process_time()
    verify(text, "Paris")
    verify(text, "B")
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    "gold", ["4", "-1.5", "100 degrees", "12 cm", r"\frac{1}{2}", "x + 1", "x=3", "2x", "1/2", "3 and 4", "?"]
)
def test_numbers_and_formulas_are_not_words(gold):
    assert not is_words(gold)


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
