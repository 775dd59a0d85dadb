"""A single value with what it counts or measures: `5 cm`, `3 apples`, `USD 18`, `1 hour 30 minutes`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from tunebook.checkers.formulas.numerals import read_number
from tunebook.checkers.formulas.units import Unit, read_unit

_CURRENCY = r"(-?)\s*(USD|EUR|GBP|INR|CNY|RMB|Rs\.?|[€£¥₹])\s*(-?[\d.].*)"
# A value, and letters or a sign behind it.
_MEASURED = r"(.*(?:[\d})!|]|\\pi))(\s*)((?:[^\W\d_]|[°€£¥₹¢%])(?:.*[^\d\s])?(?:\^\{-?\d\})?)"
# Not counted things but more of the formula.
_NO_NOUN = (
    r"^[百千万亿]|[_^\\/*]"
    r"|\b(?:squared|cubed|factorial|root|plus|minus|times|divided|power|more|less|over|not)\b"
)


@dataclass(frozen=True)
class Answer:
    """A final answer, taken apart."""

    kind: Literal["value", "list", "ordered", "relation", "ratio", "base"]
    text: str = ""
    """A value's formula, the brackets of what is ordered, a relation's sign, digits with their base."""
    items: tuple[Answer, ...] = ()
    name: str = ""
    """What the answer says it is the value of: `x` in `x = 3`."""
    unit: Unit | None = None
    noun: str = ""
    """What is counted: `apples`."""


def has_letters(text: str) -> bool:
    r"""Whether variables stand in a formula; commands, \pi, e and i are none."""
    return bool(re.search(r"(?<![a-zA-Z])(?![ei](?![a-zA-Z]))[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", " ", text)))


def value_of(text: str) -> Answer:
    """A number or a formula, with what it counts or measures."""
    text = re.sub(r"^\+\s*", "", text.strip())
    special = _arc(text) or _money(text) or _compound(text)
    if special:
        return special
    measured = re.fullmatch(_MEASURED, text)
    # The degrees of \sin 30° are not those of an angle.
    is_function = re.search(r"\\(?:sin|cos|tan|cot)(?![a-zA-Z])", text)
    if measured and not is_function and not re.search(r"\\(?!cdot)|[=<>+]", measured[3]):
        value, space, tail = measured.groups()
        return _counted(value.strip(), bool(space), tail) or Answer("value", text)
    return Answer("value", text)


def _arc(text: str) -> Answer | None:
    """35° 30' 15\" in degrees."""
    match = re.fullmatch(r"(\d+)°\s*(?:(\d+)')?\s*(?:(\d+)(?:\"|''))?", text)
    if match is None:
        return None
    degrees, minutes, seconds = (int(part or 0) for part in match.groups())
    return Answer(
        "value", str(degrees + Fraction(minutes, 60) + Fraction(seconds, 3600)), unit=read_unit("°")
    )


def _money(text: str) -> Answer | None:
    """USD 18, €3 million"""
    match = re.fullmatch(_CURRENCY, text)
    if match is None:
        return None
    return replace(value_of(match[1] + match[3]), unit=read_unit(match[2]))


def _compound(text: str) -> Answer | None:
    """1 hour 30 minutes, 5 ft 6 in."""
    part = r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+|[\u4e00-\u9fff]+)[\s,]*"
    parts = re.findall(part, text)
    if len(parts) < 2 or not re.fullmatch(rf"(?:{part})+", text):
        return None
    total = Fraction(0)
    kinds = set()
    for number, name in parts:
        unit = read_unit(name)
        if unit is None or not unit.kinds:
            return None
        total += Fraction(number) * unit.factor
        kinds.add(unit.kinds)
    if len(kinds) > 1:
        return None
    return Answer("value", str(total), unit=Unit(Fraction(1), kinds.pop()))


def _counted(value: str, spaced: bool, tail: str) -> Answer | None:
    """A value with a unit or a noun behind it; None where the letters are part of the formula."""
    words = tail.split()
    # `5m` and `2x m` are products; `5 m` is a length.
    is_letter = len(tail) == 1 and tail.isascii() and tail.isalpha()
    if is_letter and (not spaced or has_letters(value)):
        return None
    # 3 million is a number, with or without a unit behind it.
    scale = read_unit(words[0])
    number = read_number(value)
    if scale and number and not scale.kinds:
        scaled = str(number.value * scale.factor)
        rest = " ".join(words[1:])
        return (_counted(scaled, True, rest) if rest else None) or Answer("value", scaled)
    for count in range(len(words), 0, -1):
        unit = read_unit(" ".join(words[:count]))
        # `5 in total` are no inches.
        if unit is None or (words[0] == "in" and count < len(words)):
            continue
        return Answer("value", value, unit=unit)
    if not spaced and tail.isascii():
        return None
    is_word = re.search(r"[^\W\d_]{2}|[^\W\d_a-zA-Z]", tail) and not re.search(_NO_NOUN, tail)
    if is_word and number:
        return Answer("value", value, noun=tail)
    return None
