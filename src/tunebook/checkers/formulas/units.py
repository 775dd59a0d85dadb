"""Units of final answers: a small table, with products, quotients and powers of what stands in it."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

# What is measured, how many of the first unit of its kind, and the names. A plural in -s is known too.
_TABLE = """
length 1 m metre meter 米
length 1/10 dm decimetre decimeter 分米
length 1/100 cm centimetre centimeter 厘米
length 1/1000 mm millimetre millimeter 毫米
length 1/1000000 μm micrometre micrometer
length 1000 km kilometre kilometer 千米 公里
length 127/5000 in inch inches
length 381/1250 ft foot feet
length 1143/1250 yd yard
length 201168/125 mi mile
mass 1 kg kilogram 千克 公斤
mass 1/1000 g gram 克
mass 1/1000000 mg milligram
mass 1000 t tonne 吨
mass 45359237/100000000 lb lbs pound
mass 45359237/1600000000 oz ounce
time 1 s sec second 秒
time 60 min mins minute 分钟
time 3600 h hr hrs hour 小时
time 86400 day 天
time 604800 week 周
month 1 month 月
month 12 year yr 年
angle 1 ° degree 度
radian 1 rad radian
celsius 1 °C C celsius ℃
fahrenheit 1 °F F fahrenheit
kelvin 1 K kelvin
USD 1 USD dollar US$
USD 1/100 cent ¢
EUR 1 EUR € euro
GBP 1 GBP £
CNY 1 CNY RMB yuan 元
JPY 1 JPY yen
¥ 1 ¥
INR 1 INR ₹ Rs rupee
percent 1 %
voltage 1 V volt
current 1 A amp ampere
resistance 1 Ω ohm
pressure 1 Pa pascal
amount 1 mol mole
unit 1 unit
one 12 dozen
one 100 hundred 百
one 1000 thousand 千
one 10000 万
one 1000000 million
one 1000000000 billion 亿
"""

# What is a product of those.
_DERIVED = """
dm^3 l L litre liter 升
cm^3 ml mL cc millilitre milliliter 毫升
mi/h mph
km/h kph kmh
kg*m/s^2 N newton
kg*m^2/s^2 J joule
kg*m^2/s^3 W watt
s^-1 Hz hertz
"""

# A word or sign, with a power before or behind it, and what joins it to the one before.
_PART = re.compile(
    r"\s*(?P<join>/|\bper\b|每|\\cdot(?![a-zA-Z])|\*)?\s*"
    r"(?:(?P<before>sq(?:uare)?|cu(?:bic)?)\b\.?\s*|(?P<chinese>平方|立方))?"
    r"(?P<name>°[CF]?|[€£¥₹¢%]|[a-zA-Zμ]+\$?|[\u4e00-\u9fff]+?(?=[每/\s]|$))\.?"
    r"(?:\^\{?(?P<power>-?\d)\}?|\s*\b(?P<behind>squared|cubed)\b)?"
)
_POWERS = {"sq": 2, "square": 2, "平方": 2, "squared": 2, "cu": 3, "cubic": 3, "立方": 3, "cubed": 3}


@dataclass(frozen=True)
class Unit:
    """`factor` times the first units of the kinds, each to its power."""

    factor: Fraction
    kinds: frozenset[tuple[str, int]]


def read_unit(text: str) -> Unit | None:
    """The unit that a text is as a whole: `cm`, `km/h`, `square metres`, `kg m^{2}`, `USD`; else None."""
    factor = Fraction(1)
    kinds: dict[str, int] = {}
    sign = position = 0
    while position < len(text.rstrip()):
        part = _PART.match(text, position)
        if part is None:
            return None
        unit = _lookup(part["name"])
        if unit is None:
            return None
        if part["join"] in {"/", "per", "每"}:
            sign = -1
        elif part["join"] or not sign:
            sign = 1
        power = sign * _power(part)
        factor *= unit.factor**power
        for kind, exponent in unit.kinds:
            kinds[kind] = kinds.get(kind, 0) + exponent * power
        position = part.end()
    if not position:
        return None
    return Unit(factor, frozenset(item for item in kinds.items() if item[1]))


def _power(part: re.Match[str]) -> int:
    power = int(part["power"] or 1)
    for word in (part["before"], part["behind"], part["chinese"]):
        power *= _POWERS.get(word, 1)
    return power


def _lookup(name: str) -> Unit | None:
    # The letters of units differ by their case (`M` is no metre), words do not.
    spellings = [name, name.removesuffix("s")]
    if len(name) > 3:
        spellings += [name.lower(), name.lower().removesuffix("s")]
    for spelling in spellings:
        if spelling in _units():
            return _units()[spelling]
        if spelling in _derived():
            return read_unit(_derived()[spelling])
    return None


@functools.cache
def _units() -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    for line in _TABLE.strip().splitlines():
        kind, factor, *names = line.split()
        kinds = frozenset({(kind, 1)})
        if kind == "one":
            kinds = frozenset()
        units.update(dict.fromkeys(names, Unit(Fraction(factor), kinds)))
    return units


@functools.cache
def _derived() -> dict[str, str]:
    formulas: dict[str, str] = {}
    for line in _DERIVED.strip().splitlines():
        formula, *names = line.split()
        formulas.update(dict.fromkeys(names, formula))
    return formulas
