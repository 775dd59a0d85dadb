"""Final answers taken apart: lists, names, equations, intervals, points, ratios, bases, units.

The texts are those of `latex.normalise`. What the parts have in common is said in `comparing`.
"""

from __future__ import annotations

import re
from dataclasses import replace

from tunebook.checkers.formulas.measured import Answer, has_letters, value_of

MAX_ITEMS = 40  # of a list: to match two lists takes the square of it

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}
_OPENS = {"(", "[", "{", r"\{", r"\begin"}
_CLOSES = {")", "]", "}", r"\}", r"\end"}
_SEPARATORS = r"[,;]|\b(?:and|or)\b|\\cup(?![a-zA-Z])|或|和"
# Figures have lengths and angles, and sums and ratios of them: AB + CD, \frac{AB}{CD}, \cos A.
_FIGURE = r"(?:\\(?:frac|sin|cos|tan|cdot)(?![a-zA-Z])|[A-Z]'?|[+:/{}| ])+"
_PLAIN_NAME = r"\(\w(?:,\w)+\)|[^\W\d_]+(?:_?\w+)?'*(?:\(\w+\))?"
_NAMED = r"\\(sin|cos|tan|alpha|beta|gamma|theta|lambda|phi|omega|mu|sigma)(?![a-zA-Z])"
_DECORATION = r"\bm\s*(?=\\angle)|\\(?:angle|overline|vec|triangle|hat|bar|mathbf)(?![a-zA-Z])|[\s{}]"
_FRENCH_INTERVAL = re.compile(r"([\[\]])(\s*[^\[\],;\s][^\[\],;]*[,;][^\[\],;]+)([\[\]])")


def readings(text: str) -> list[Answer]:
    r"""What an answer can mean: `3,5` is two numbers or one, `4\pi \approx 12.57` two values."""
    exact, _, rounded = (part.strip() for part in text.partition(r"\approx"))
    texts = [rounded or exact]
    if rounded and exact and (exact == r"\pi" or not name_of(exact)):
        texts.append(exact)
    answers = []
    for one in texts:
        plain = _without_thousands(_FRENCH_INTERVAL.sub(_interval_in_english, one))
        answers.append(_read(plain))
        # A decimal comma; not in brackets, where (3,5) is a point.
        decimal = re.sub(r"(?<![\d,.])(\d+),(\d+)(?![\d,.])", r"\1.\2", plain)
        if decimal != plain and (";" in plain or not re.search(r"[(\[{].*,.*[)\]}]", plain)):
            answers.append(_read(decimal))
    return answers


def _interval_in_english(match: re.Match[str]) -> str:
    """]2;5[ as (2;5)"""
    opens, ends, closes = match.groups()
    return f"{opens.replace(']', '(')}{ends}{closes.replace('[', ')')}"


def _without_thousands(text: str) -> str:
    """1,234,567.5 and 1.234.567,5 without the marks of thousands; in brackets a comma parts numbers."""
    if re.match(r"\s*(?:\\\{|[A-Z]?\(|\[|\{)", text):
        return text
    american = r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])"
    # One group alone, 1.234, is a decimal.
    european = r"(?<![\d.,])[1-9]\d{0,2}(?:(?:\.\d{3}){2,}(?![\d.])|\.\d{3}(?=,\d+(?![\d,.])))"
    text = re.sub(american, lambda match: match[0].replace(",", ""), text)
    return re.sub(european, lambda match: match[0].replace(".", ""), text)


def split(text: str, separators: str) -> list[str]:
    """Parts of a text, with the separators between them, outside all brackets."""
    parts = [""]
    depth = 0
    pieces = rf"\\begin\b|\\end\b|\\[{{}}]|[(\[{{)\]}}]|(?P<separator>{separators})|(?s:.)"
    for match in re.finditer(pieces, text):
        piece = match[0]
        if match["separator"] and depth <= 0:
            parts += [piece.strip(), ""]
            continue
        depth += (piece in _OPENS) - (piece in _CLOSES)
        parts[-1] += piece
    return [part.strip() for part in parts]


def _read(text: str) -> Answer:
    return _list(text) or _read_item(text)


def _read_item(text: str) -> Answer:
    """What is no list; the first reader that knows it."""
    text = text.strip()
    if text == r"\mathbb{R}":
        text = r"(-\infty,\infty)"
    for reader in (_membership, _relation, _equation, _brackets, _ratio, _base):
        answer = reader(text)
        if answer is not None:
            return answer
    return value_of(text)


def _list(text: str) -> Answer | None:
    """2, 3 and 4; x = 1 or x = 2; a union; both values of ±."""
    parts = split(text, _SEPARATORS)
    items = []
    name = ""
    for part in parts[::2][:MAX_ITEMS]:
        for signed in _plus_and_minus(part):
            item = _read_item(signed)
            # `n = 2, 3, 4` names them all.
            name = item.name or name
            items.append(replace(item, name=name))
    if len(items) < 2:
        return None
    if any(item.text == r"\dots" for item in items):
        return Answer("ordered", "dots", tuple(items))
    # x > 2 and x < 5 is not x > 2 or x < 5.
    joined = ""
    if "and" in parts[1::2] and items[0].kind == "ordered" and items[0].name:
        joined = "and"
    return Answer("list", joined, tuple(items))


def _plus_and_minus(text: str) -> list[str]:
    if not text:
        return []
    if r"\pm" not in text:
        return [text]
    return [text.replace(r"\pm", "+").replace(r"\mp", "-"), text.replace(r"\pm", "-").replace(r"\mp", "+")]


def _membership(text: str) -> Answer | None:
    r"""x \in (2, 5)"""
    parts = split(text, r"\\in(?![a-zA-Z])")
    if len(parts) == 3 and name_of(parts[0]):
        return replace(_read(parts[2]), name=name_of(parts[0]))
    return None


def _relation(text: str) -> Answer | None:
    r"""`x > 3` and `2 < x \le 5` as intervals; others as they are."""
    parts = split(text, r"<|>|\\[lgn]e(?![a-zA-Z])")
    if len(parts) == 5:
        return _double_relation(parts)
    if len(parts) != 3:
        return None
    left, sign, right = parts
    name = name_of(left)
    if name_of(right) and not name:
        name = name_of(right)
        left, sign, right = right, _FLIPPED[sign], left
    if not name or sign == r"\ne" or has_letters(right):
        # All of them as greater than.
        if sign in {"<", r"\le"}:
            left, sign, right = right, _FLIPPED[sign], left
        return Answer("relation", sign, (Answer("value", left), Answer("value", right)))
    if sign in {">", r"\ge"}:
        return _interval(name, [right, sign, "", "<", r"\infty"])
    return _interval(name, [r"-\infty", "<", "", sign, right])


def _double_relation(parts: list[str]) -> Answer | None:
    if parts[1] in {">", r"\ge"}:
        parts = [_FLIPPED.get(part, part) for part in reversed(parts)]
    name = name_of(parts[2])
    if name and {parts[1], parts[3]} <= {"<", r"\le"}:
        return _interval(name, parts)
    return None


def _interval(name: str, parts: list[str]) -> Answer:
    low, low_sign, _, high_sign, high = parts
    opens = "(" if low_sign in {"<", ">"} else "["
    closes = ")" if high_sign == "<" else "]"
    return Answer("ordered", opens + closes, (value_of(low), value_of(high)), name)


def _equation(text: str) -> Answer | None:
    """x = 3 as a value with a name, 12 - 7 = 5 as 5, other equations as they are."""
    parts = split(text, r":?=")[::2]
    if len(parts) < 2:
        return None
    left = parts[0]
    right = parts[-1]
    if name_of(right) and not name_of(left) and not has_letters(left):
        left, right = right, left
    if not has_letters(left) and not name_of(left):
        return _read_item(right)
    if name_of(left):
        return replace(_read_item(right), name=name_of(left))
    return Answer("relation", "=", (Answer("value", left), Answer("value", right)))


def name_of(text: str) -> str:
    r"""The name that `x_{1}`, `f(x)`, `\angle ABC`, `\overline{AB}`, `Area` are; empty for other texts."""
    if re.fullmatch(_FIGURE, text):
        return re.sub(r"[\s{}|\\]", "", text)
    plain = re.sub(_NAMED, r"\1", re.sub(_DECORATION, "", text))
    return plain if re.fullmatch(_PLAIN_NAME, plain) else ""


def _brackets(text: str) -> Answer | None:
    r"""A point, an interval, a set or a matrix; brackets around one value go."""
    point = re.fullmatch(r"([A-Z]\w?'*)\s*(\(.*,.*\))", text)
    if point:
        return replace(_read_item(point[2]), name=point[1])
    matrix = re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", text, re.DOTALL)
    if matrix:
        return _matrix(matrix[1])
    text = re.sub(r"^\{(.*,.*)\}$", r"\\{\1\\}", text)
    whole = re.fullmatch(r"(\(|\[|\\\{)(.*?)(\)|\]|\\\})", text, re.DOTALL)
    if whole is None or not _closes_at_end(text):
        return None
    opens, content, closes = whole.groups()
    if opens == r"\{":
        # {x | x > 3}
        builder = re.fullmatch(r"\s*\w\s*(?:\||\\mid|:)(.*)", content)
        if builder:
            return _read(builder[1])
    parts = [part for part in split(content, "[,;]")[::2] if part]
    items = tuple(_read_item(part) for part in parts[:MAX_ITEMS])
    if opens == r"\{":
        return Answer("list", "", items)
    if opens + closes == "[]" and items and all(item.text == "[]" for item in items):
        # [[1, 2], [3, 4]]
        return _matrix(r"\\".join("&".join(cell.text for cell in row.items) for row in items))
    if len(items) > 1:
        return Answer("ordered", opens + closes, items)
    if opens + closes == "()" and items:
        return items[0]
    return None


def _closes_at_end(text: str) -> bool:
    depth = 0
    for match in re.finditer(r"\\?[{}]|[()\[\]]", text):
        depth += 1 if match[0] in _OPENS else -1
        if depth == 0 and match.end() < len(text):
            return False
    return depth == 0


def _matrix(content: str) -> Answer:
    rows = [row for row in content.split(r"\\") if row.strip()]
    cells = []
    for row in rows:
        cells += [value_of(cell.strip()) for cell in row.split("&")]
    # A column is written as a point, too.
    brackets = "()" if len(rows) == len(cells) else f"{len(rows)} rows"
    return Answer("ordered", brackets, tuple(cells))


def _ratio(text: str) -> Answer | None:
    """3:4, and a time with or without its half of the day."""
    half = re.search(r"(?<=\d)\s*([apAP])\.?\s?[mM]\.?$", text)
    parts = split(text[: half.start()] if half else text, ":")[::2]
    if len(parts) < 2 or not all(parts):
        return None
    noun = half[1].lower() if half else ""
    return Answer("ratio", "", tuple(value_of(part) for part in parts), noun=noun)


def _base(text: str) -> Answer | None:
    r"""1011_{2}, (1011)_2 and `1011 (base 2)`."""
    subscript = r"_\{?\(?(\w+)\)?\}?|\s*\(?(?:in )?base (\w+)\)?"
    match = re.fullmatch(rf"\(?([0-9A-Fa-f]*[0-9][0-9A-Fa-f]*)\)?(?:{subscript})", text)
    if match is None:
        return None
    base = match[2] or match[3]
    if base in _NUMBER_WORDS:
        base = str(_NUMBER_WORDS.index(base))
    return Answer("base", f"{match[1].lstrip('0').upper()}_{base}")
