"""The exact value of a number as it is written in a final answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_EXPONENT = 5000  # of ten

_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SIGNED = rf"[-+]?\s*{_DECIMAL}"
_FORMS = (
    rf"(?P<decimal>{_DECIMAL})",
    rf"(?P<top>{_SIGNED})\s*/\s*(?P<bottom>{_SIGNED})",
    rf"\\frac\{{(?P<top>{_SIGNED})\}}\{{(?P<bottom>{_SIGNED})\}}",
    r"(?P<whole>[0-9]+)\s+(?P<top>[0-9]+)\s*/\s*(?P<bottom>[0-9]+)",
    r"(?P<whole>[0-9]+)\s*\\frac\{(?P<top>[0-9]+)\}\{(?P<bottom>[0-9]+)\}",
    rf"(?:(?P<decimal>{_DECIMAL})\s*\\cdot\s*)?10\^\{{?(?P<exponent>[-+]?[0-9]+)\}}?",
    rf"(?P<decimal>{_DECIMAL})[eE](?P<exponent>[-+]?[0-9]+)",
    (
        r"(?P<decimal>[0-9]*\.[0-9]*)(?P<period>\\overline\{[0-9]+\}|\([0-9]+\)"
        r"|\\dot\{[0-9]\}(?:[0-9]*\\dot\{[0-9]\})?)"
    ),
    r"(?P<decimal>[0-9]*\.[0-9]*?)(?P<period>[0-9])(?P=period){2,}\\dots",
)


@dataclass(frozen=True)
class Number:
    """An exact value. A long decimal also stands for what it is rounded from: `step` is its last place."""

    value: Fraction
    step: Fraction = Fraction(0)

    def equals(self, other: Number) -> bool:
        return self.value == other.value or abs(self.value - other.value) < max(self.step, other.step)


def read_number(text: str) -> Number | None:
    r"""The value of `-.5`, `\frac{3}{-4}`, `1 3/4`, `6.02 \cdot 10^{4}`, `0.\overline{3}`; None of others."""
    text = text.strip()
    sign = -1 if text.startswith("-") else 1
    unsigned = re.sub(r"^[-+]\s*", "", text)
    for pattern in _FORMS:
        match = re.fullmatch(pattern, unsigned)
        if match is None:
            continue
        parts = {key: value.replace(" ", "") for key, value in match.groupdict().items() if value}
        try:
            number = _value(parts)
        except (ZeroDivisionError, ValueError):
            return None
        if number is not None:
            return Number(sign * number.value, number.step)
    return None


def _value(parts: dict[str, str]) -> Number | None:
    if "period" in parts:
        return _repeating(parts)
    if "top" in parts:
        value = Fraction(parts["top"]) / Fraction(parts["bottom"])
        # `4 10/3` is no mixed number, and nobody knows what it is.
        if "whole" in parts and value >= 1:
            return None
        return Number(int(parts.get("whole", 0)) + value)
    decimal = parts.get("decimal", "1")
    exponent = int(parts.get("exponent", 0))
    if abs(exponent) > MAX_EXPONENT:
        return None
    scale = Fraction(10) ** exponent
    return Number(Fraction(decimal) * scale, _step(decimal) * scale)


def _step(decimal: str) -> Fraction:
    """The last place of a decimal of ten digits and more; 0 for others, which mean what they say."""
    whole, _, places = decimal.partition(".")
    if not places or len((whole + places).lstrip("0")) < 10:
        return Fraction(0)
    return Fraction(1, 10 ** len(places))


def _repeating(parts: dict[str, str]) -> Number:
    decimal = parts["decimal"]
    period = re.sub(r"\D", "", parts["period"])
    places = len(decimal.partition(".")[2])
    start = Fraction("0" + decimal)
    return Number(start + Fraction(int(period), (10 ** len(period) - 1) * 10**places))
