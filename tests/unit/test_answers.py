"""Answers as models and people write them, and whether they are right.

`tests/cases/answers.jsonl` comes from public bug reports and questions, `more_answers.jsonl` has more forms
of the same kinds. A kind that begins with `text` is of whole answers, the others of final ones.
"""

from __future__ import annotations

import json
import time

import pytest
from fuzzing import scaled
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunebook.checkers import maths
from tunebook.checkers.formulas import algebra
from tunebook.checkers.maths import equal, verify
from tunebook.recipe.files import ROOT

CASES = ROOT / "tests" / "cases"
EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Gold and answer of a case that is decided otherwise, and why."""


def read(name):
    cases = []
    for line in (CASES / name).read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if (case["gold"], case["answer"]) not in EXCEPTIONS:
            cases.append(pytest.param(case, id=f"{case['kind']}: {case['gold']} <- {case['answer']}"[:80]))
    return cases


@pytest.mark.parametrize("case", read("answers.jsonl") + read("more_answers.jsonl"))
def test_an_answer_as_people_write_it(case):
    if case["kind"].startswith("text:"):
        assert verify(case["answer"], case["gold"]).correct is case["right"]
        return
    assert equal(case["gold"], case["answer"]) is case["right"]
    assert verify(rf"So it is $\boxed{{{case['answer']}}}$.", case["gold"]).correct is case["right"]


@pytest.mark.parametrize("case", read("answers.jsonl"))
def test_a_final_answer_stands_alone(case):
    assert verify(case["answer"], case["gold"]).correct is case["right"]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "12-7 = 5"),
        ("x=3, y=4", "(3,4)"),
        ("12 cm", "0.12 m"),
        ("\\frac{\\pi}{3}", "60°"),
        ("2\\sqrt{3}", "\\sqrt{12} cm"),
    ],
)
def test_one_changed_digit_makes_it_wrong(gold, answer):
    assert equal(gold, answer)
    end = max(place for place, sign in enumerate(answer) if sign.isdigit())
    changed = f"{answer[:end]}{(int(answer[end]) + 1) % 10}{answer[end + 1 :]}"
    assert not equal(gold, changed), changed


WHOLE = [
    *(
        "{n}",
        "{n:,}",
        "{n}.0",
        "{n},0",
        "{n}.",
        "**{n}**",
        "x = {n}",
        "{n} cm",
        "{n} apples",
        "{n}°",
        "{n}%",
        "{n}元",
    ),
    *("${n}$", r"\({n}\)", r"\text{{{n}}}", r"{n}\,\text{{cm}}^2", r"{n}^\circ", r"\${n}", r"\sqrt{{{n}^2}}"),
]
PARTS = [
    *("{w} {t}/{b}", "{n}/{b}", r"{w}\frac{{{t}}}{{{b}}}", r"\frac{{{n}}}{{{b}}}", r"{n}\cdot {b}^{{-1}}"),
    *(r"\dfrac{{{n}}}{{{b}}}\text{{ m}}", r"{w}+\frac{{{t}}}{{{b}}}"),
]


@settings(deadline=None, max_examples=scaled(200))
@given(st.integers(1, 10**7), st.sampled_from(WHOLE), st.integers(-3, 3))
def test_a_whole_number_in_any_writing(n, form, off):
    assert equal(str(n), form.format(n=n))
    assert equal(str(n + off), form.format(n=n)) is (off == 0)


@settings(deadline=None, max_examples=scaled(200))
@given(st.integers(1, 50), st.integers(2, 30), st.data(), st.sampled_from(PARTS), st.integers(-1, 1))
def test_a_fraction_in_any_writing(whole, below, data, form, off):
    top = data.draw(st.integers(1, below - 1))
    gold = rf"\frac{{{whole * below + top + off}}}{{{below}}}"
    answer = form.format(w=whole, t=top, b=below, n=whole * below + top)
    assert equal(gold, answer) is (off == 0)


PIECES = r"""
9 1 12 3 0.5 999999 - + * / ^ ( ) [ ] } { ^{ _{ }{ \{ \} \\ & , ; ! ² ½ √ $ | x y n i e dx A B = < % ° : '
\frac{ \sqrt{ \sqrt[3]{ \boxed{ \text{ \left( \right) \pi \infty \le \pm \in \cup \dots \log_2 \sin \binom{
\times10^{ \overline{3} ^\circ \sum_{k=1}^{n} \int_0^1 \lim_{x\to0} \begin{pmatrix}1&2\\3&4\end{pmatrix}
<think> </think> #### cm apples and or not answer is
"""
latex = st.lists(st.sampled_from([*PIECES.split(), " ", "\n"]), max_size=14).map("".join)


@settings(max_examples=scaled(400), deadline=None)
@given(latex, latex)
@example("9^{9^{9^{9}}}", "10^{10^{10}}")
@example("(999999999)!", "\\binom{999999999}{499999999}")
@example("\\sum_{k=1}^{10^{12}} k^{k}", "2^{99999}!")
@example("(" * 190 + "1" + ")" * 190, "((1))")
def test_random_latex_takes_less_than_a_second(gold, answer):
    """The comparison ends by its own clock, so that its process never has to be killed."""
    equal("\\sqrt{2}", "x")
    process = maths._worker.process
    started = time.thread_time()
    for one, other in ((gold, answer), (answer, gold), ("17", answer)):
        assert equal(one, other) in (True, False)
        verify(f"So it is ${other}$.", one)
        verify(other, one)
    assert time.thread_time() - started < 1
    assert maths._worker.process is process
    assert process.poll() is None


@pytest.mark.parametrize(
    "text", ["(" * 100_000, "\n" * 100_000, "1, " * 50_000, "$" * 100_000, "\\frac{" * 20_000]
)
def test_long_texts_are_read_in_linear_time(text):
    started = time.thread_time()
    verify(text, "5")
    verify(text + "\\boxed{1}, " * 10_000, "5")
    verify("The answer is " + text, "5")
    assert time.thread_time() - started < 3


def test_a_comparison_has_a_second_of_its_process():
    assert algebra.CPU_S < 1
