"""Whether two final answers are the same: names, lists, brackets, units and bases first, then the values.

Plain numbers are compared exactly; other formulas are asked of `algebra`, which the caller hands in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from tunebook.checkers.formulas.expressions import readings
from tunebook.checkers.formulas.measured import Answer, has_letters
from tunebook.checkers.formulas.numerals import read_number

Algebra = Callable[[str, str, str], bool]
"""Whether two formulas are the same: as `value`, `equation` or `inequality`, gold, answer."""

# Kinds of units that one name stands for: degrees, ¥, pounds.
_ALIKE = (
    {"angle", "celsius"},
    {"angle", "fahrenheit"},
    {"angle", "radian"},
    {"¥", "CNY"},
    {"¥", "JPY"},
    {"GBP", "mass"},
)


def compare(gold: str, answer: str, algebra: Algebra) -> bool:
    """Whether any reading of a normalised answer is one of the gold answer's."""
    for wanted in readings(gold):
        for reading in readings(answer):
            if _same(wanted, reading, algebra):
                return True
    return False


def _same(gold: Answer, answer: Answer, algebra: Algebra) -> bool:
    names = {gold.name, answer.name} - {""}
    if len(names) > 1 and names != {"y", "f(x)"}:
        return False
    kinds = {gold.kind, answer.kind}
    if kinds == {"list"}:
        return gold.text == answer.text and _same_lists(gold, answer, algebra)
    for one, other in ((gold, answer), (answer, gold)):
        # A set of one, or one value in two ways: 3/4 or 0.75
        if one.kind == "list" and other.kind != "ordered" and one.items:
            return all(_same(item, other, algebra) for item in one.items)
        # (3, 4) and x = 3, y = 4
        if one.kind == "list" and other.kind == "ordered":
            return other.text == "()" and _are_coordinates(one) and _same_in_order(one, other, algebra)
    if kinds == {"ordered"}:
        return gold.text == answer.text and _same_in_order(gold, answer, algebra)
    if kinds == {"base"}:
        return gold.text == answer.text
    if kinds == {"ratio"}:
        return _same_ratios(gold, answer, algebra)
    if kinds == {"ratio", "value"}:
        return _same_quotient(gold, answer, algebra)
    if kinds == {"value"}:
        return _same_values(gold, answer, algebra)
    return "relation" in kinds and _same_relations(gold, answer, algebra)


def _same_in_order(gold: Answer, answer: Answer, algebra: Algebra) -> bool:
    if len(gold.items) != len(answer.items):
        return False
    return all(_same(one, other, algebra) for one, other in zip(gold.items, answer.items, strict=True))


def _letters(answer: Answer) -> list[str]:
    """The names of a list without subscripts: x_1 and x_2 are two values of one x."""
    return [item.name.partition("_")[0] for item in answer.items]


def _are_coordinates(answer: Answer) -> bool:
    """x = 3, y = 4: names of their own, in their order."""
    letters = _letters(answer)
    return all(letters) and sorted(set(letters)) == letters


def _same_lists(gold: Answer, answer: Answer, algebra: Algebra) -> bool:
    """Lists are the same in any order, unless one of them names several things and the other none."""
    if len(gold.items) != len(answer.items):
        return False
    for one, other in ((gold, answer), (answer, gold)):
        if len(set(_letters(one))) > 1 and not any(_letters(other)):
            return _are_coordinates(one) and _same_in_order(gold, answer, algebra)
    both = {item.name for item in gold.items} | {item.name for item in answer.items}
    # x_1 = 2, x_2 = 3 and x = 2 or x = 3
    if not all("_" in name for name in both):
        gold = _without_subscripts(gold)
        answer = _without_subscripts(answer)
    left = list(answer.items)
    for item in gold.items:
        partner = next((candidate for candidate in left if _same(item, candidate, algebra)), None)
        if partner is None:
            return False
        left.remove(partner)
    return True


def _without_subscripts(answer: Answer) -> Answer:
    items = zip(answer.items, _letters(answer), strict=True)
    return replace(answer, items=tuple(replace(item, name=letter) for item, letter in items))


def _same_ratios(gold: Answer, answer: Answer, algebra: Algebra) -> bool:
    if len(gold.items) != len(answer.items):
        return False
    if _is_time(gold):
        texts = [[item.text.lstrip("0") for item in one.items] for one in (gold, answer)]
        return texts[0] == texts[1] and (gold.noun == answer.noun or not gold.noun or not answer.noun)
    # Each part against the first
    for one, other in zip(gold.items[1:], answer.items[1:], strict=True):
        wanted = _quotient(gold.items[0], one)
        if not _same_formulas(wanted, _quotient(answer.items[0], other), algebra):
            return False
    return True


def _is_time(ratio: Answer) -> bool:
    """3:30 is a time of day, and 16:25 a ratio: ratios are in their lowest terms."""
    hour, minute = (item.text for item in ratio.items[:2])
    if ratio.noun:
        return True
    if len(ratio.items) != 2 or not re.fullmatch(r"[0-2]?\d:[0-5]\d", f"{hour}:{minute}"):
        return False
    return math.gcd(int(hour), int(minute)) > 1 or minute.startswith("0")


def _quotient(one: Answer, other: Answer) -> str:
    return rf"\frac{{{one.text}}}{{{other.text}}}"


def _same_quotient(gold: Answer, answer: Answer, algebra: Algebra) -> bool:
    """3:4 and 3/4"""
    ratio, value = gold, answer
    if gold.kind == "value":
        ratio, value = answer, gold
    if len(ratio.items) != 2 or value.unit or value.noun or _is_time(ratio):
        return False
    return _same_formulas(_quotient(*ratio.items), value.text, algebra)


def _same_relations(gold: Answer, answer: Answer, algebra: Algebra) -> bool:
    """Equations and inequalities are the same when their differences are multiples."""
    signs = []
    differences = []
    for one in (gold, answer):
        sides = [item.text for item in one.items]
        sign = one.text
        # y = 2x + 1 beside 2x - y + 1 = 0; but x = 3 is no equation to be solved.
        if one.kind == "value" and one.name and has_letters(one.text):
            sides = [one.name, one.text]
            sign = "="
        elif one.kind != "relation":
            return False
        signs.append(sign)
        differences.append(f"({sides[0]})-({sides[1]})")
    if signs[0] != signs[1]:
        return False
    kind = "equation" if signs[0] in {"=", r"\ne"} else "inequality"
    return algebra(kind, differences[0], differences[1])


def _same_values(gold: Answer, answer: Answer, algebra: Algebra) -> bool:
    """Values with their units. A unit that only one of them names is left out, unless it is an angle's."""
    if not _same_things(gold, answer):
        return False
    kinds = _kinds(gold) | _kinds(answer)
    if gold.unit and answer.unit and gold.unit.kinds == answer.unit.kinds:
        return _same_formulas(_in_first_units(gold), _in_first_units(answer), algebra)
    # 60° and \frac{\pi}{3}
    if "angle" in kinds and r"\pi" in gold.text + answer.text:
        return _same_formulas(_in_radians(gold), _in_radians(answer), algebra)
    if _same_formulas(gold.text, answer.text, algebra):
        return True
    # 25% is 25, and is 0.25 as well.
    if kinds != {"percent"}:
        return False
    return _same_formulas(_of_a_hundred(gold), _of_a_hundred(answer), algebra)


def _same_things(gold: Answer, answer: Answer) -> bool:
    """Whether two values can count or measure the same."""
    one = _kinds(gold)
    other = _kinds(answer)
    if gold.noun and answer.noun:
        words = [{word.lower().rstrip("s") for word in thing.noun.split()} for thing in (gold, answer)]
        if not words[0] <= words[1] and not words[1] <= words[0]:
            return False
    if (gold.noun and other) or (answer.noun and one):
        return False
    if not gold.unit or not answer.unit:
        return True
    return gold.unit.kinds == answer.unit.kinds or one | other in _ALIKE


def _kinds(answer: Answer) -> set[str]:
    if answer.unit is None:
        return set()
    return {kind for kind, _ in answer.unit.kinds}


def _in_first_units(answer: Answer) -> str:
    return _times(answer.text, answer.unit.factor if answer.unit else Fraction(1))


def _of_a_hundred(answer: Answer) -> str:
    return _times(answer.text, Fraction(1, 100)) if answer.unit else answer.text


def _in_radians(answer: Answer) -> str:
    if _kinds(answer) != {"angle"}:
        return answer.text
    return rf"\frac{{({answer.text})\pi}}{{180}}"


def _times(text: str, factor: Fraction) -> str:
    number = read_number(text)
    if factor == 1:
        return text
    if number:
        return str(number.value * factor)
    return rf"\frac{{({text})\cdot {factor.numerator}}}{{{factor.denominator}}}"


def _same_formulas(gold: str, answer: str, algebra: Algebra) -> bool:
    if gold == answer:
        return bool(gold)
    # AB \parallel CD
    if gold.replace(" ", "") == answer.replace(" ", "") and not re.search(r"\d", gold):
        return True
    # Words
    if gold.casefold() == answer.casefold() and re.search(r"[a-z]{3}", gold) and "\\" not in gold:
        return True
    number = read_number(gold)
    other = read_number(answer)
    if number and other:
        return number.equals(other)
    return algebra("value", gold, answer)
