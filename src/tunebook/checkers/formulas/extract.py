"""The final answer of a text without a box: its last whole expression, and not its last number."""

from __future__ import annotations

import re

from tunebook.checkers.formulas.expressions import split
from tunebook.checkers.formulas.latex import normalise, plain_signs
from tunebook.checkers.formulas.units import read_unit

LONGEST = 400  # characters of an expression
TAIL = 3000  # characters at the end of a text, among which the expression is looked for

_BRACES = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_TOKEN = re.compile(
    r"(?P<math>\$\$[^$]+\$\$|\$(?!\s)(?:[^$\\\n]|\\[^\n])*(?<!\s)\$(?!\d)|\\\(.+?\\\)|\\\[.+?\\\])"
    r"|(?P<command>\\begin\{(\w+)\}.*?\\end\{\w+\}"
    rf"|\\[a-zA-Z]+(?:\s*(?:\[\w+\]|{_BRACES}))*|\\[^a-zA-Z\s])"
    r"|(?P<number>(?>\d[\d,.]*\d|\d|(?<![\w.])\.\d+)(?!(?:st|nd|rd|th)\b))"
    rf"|(?P<power>[\^_](?:{_BRACES}|-?\w))"
    r"|(?P<sign>[-+*/=<>:%°'|(){}\[\],;€£¥₹$]|!(?=\s*[-+*/=)}!]))"
    r"|(?P<joiner>\b(?:and|or|per)\b)"
    r"|(?P<word>[^\W\d_]+)"
    r"|(?P<space>[^\S\n]+)|(?P<stop>.)",
    re.DOTALL,
)
_FUNCTIONS = {"sqrt", "pi", "sin", "cos", "tan", "log", "ln", "exp"}
_POWERS = {"square", "squared", "cubic", "cubed", "sq"}
_JOINING = {"and", "or", "per"}
_DENIED = "\0"  # marks an expression behind `not`
_JOINERS = r"[,;]|\b(?:and|or)\b"
# A number, or a sign that stands for one.
_VALUE = re.compile(r"\d|\\(?:pi|frac|sqrt|infty|emptyset|varnothing|mathbb)|\bpi\b")
_IS = re.compile(
    r"\banswers?\b(?:[ ]\w+){0,3}?[ ]*(?:(?:is|are)\b(?! not\b)|[:=]|\*\*:?)|答案[是为:：]+", re.IGNORECASE
)


def last_expression(text: str, gold: str) -> str | None:
    r"""The final answer of a text without a box, or None where it has none.

    What stands behind `####` or "the answer is" goes before the last expression of the text.
    """
    # A box that was never closed is none.
    text = re.sub(r"\\(?:boxed|fbox)\s*\{", "\n", text)
    marked = _after_marks(text)
    if marked is not None:
        return marked
    if len(text) < TAIL and "\n" not in text.strip() and _is_bare(text):
        return _value_of(text.strip(), gold)
    text = _without_numbering(plain_signs(text))
    phrases = list(_IS.finditer(text))
    if phrases:
        rest = text[phrases[-1].end() :][:TAIL].lstrip(" :*").partition("\n")[0]
        found = expressions(re.split(r"[.!?。](?=\s|$)", rest)[0], gold)
        # `Answer:` often stands before a whole solution.
        if found and (phrases[-1][0][-1] not in ":*=" or len(expressions(rest, gold)) == 1):
            return _value_of(found[0], gold)
    found = expressions(text[-TAIL:], gold)
    return _value_of(found[-1], gold) if found else None


def _after_marks(text: str) -> str | None:
    """What stands behind `####`, as in GSM8K, before the model goes on to another question."""
    own = re.split(r"\n[ \t]*(?:Question|Q|Problem)[ \t]*:", text)[0]
    lines = re.findall(r"^####[ \t]*([^\n]*\d[^\n]*)$", own, re.MULTILINE)
    for line in reversed(lines):
        # `#### Step 2` is a heading.
        if _is_bare(line) or re.match(r"[^\w\s]*\d", line):
            return str(line.strip())
    return None


def _without_numbering(text: str) -> str:
    """Without what numbers lines and steps, and without bold."""
    text = re.sub(r"^[ \t]*(?:\d+[.)]|[-*•])[ \t]+(?=\S)", "", text, flags=re.MULTILINE)
    things = r"(?i)\b(?:step|equation|eq\.|figure|fig\.|case|part|question|problem|line)"
    text = re.sub(rf"{things}s? \(?\d+\)?", " ", text)
    return re.sub(r"\*\*|__", "", text)


def _is_bare(text: str) -> bool:
    """Whether a text is a final answer as it stands, without a word that belongs to a sentence."""
    plain = re.sub(r"\\[a-zA-Z]+|_\{?\w+", " ", normalise(text))
    # `12 apples`, `3:30 pm`
    if re.fullmatch(r"-?\d\S* [^\W\d_]+|[!-~]*\d[!-~]*", plain):
        return True
    for word in re.findall(r"[^\W\d_]{2,}", plain):
        is_known = word.isupper() or word in _POWERS or word in _JOINING or read_unit(word)
        if not is_known:
            return False
    return bool(re.search(r"\w", plain) or _VALUE.search(text))


def expressions(text: str, gold: str) -> list[str]:
    """All expressions of a text, in order; those without a number only where `gold` has none."""
    runs: list[str] = []
    run = ""
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        piece = token[0]
        if kind == "math":
            piece = re.sub(r"^(?:\$+|\\[(\[])|(?:\$+|\\[)\]])$", "", piece)
        is_part = kind != "stop"
        if kind == "word":
            is_part = _is_formula(piece, run, text[token.end() :])
        # 3 1/2 is one number, `2020 15` are two.
        if kind == "number" and re.search(r"\d\s+$", run) and not re.match(r"\s*/", text[token.end() :]):
            runs.append(run)
            run = ""
        if is_part:
            run += piece
        else:
            runs.append(run)
            run = ""
            # What it is not is no answer.
            if piece.lower() in {"not", "never"}:
                run = _DENIED
    runs.append(run)
    runs = [run for run in runs if len(run) < LONGEST and not run.startswith(_DENIED)]
    with_values = [_trimmed(run) for run in runs if _VALUE.search(run)]
    if with_values or _VALUE.search(gold):
        return with_values
    return [_trimmed(run) for run in runs if re.search("[a-zA-Z]", run)]


def _is_formula(word: str, before: str, after: str) -> bool:
    """Whether letters are a variable, a unit or a function of the expression before them."""
    behind_value = re.search(r"[\d})°%]\s*$|\\pi\s*$|\bper\s*$|/\s*$", before)
    if word in _FUNCTIONS:
        return True
    if behind_value and (word in _POWERS or read_unit(word)):
        # `5 in total` are no inches.
        return word != "in" or not re.match(r"\s+\w", after)
    if re.search(r"(?:sq|square|cubic)\.?\s*$", before):
        return read_unit(word) is not None
    glued = bool(re.search(r"[\d})\\^_(]$", before))
    if len(word) == 1:
        return glued or bool(re.search(r"[-+*/=<>]\s*$", before) or re.match(r"\s*[-+*/=<>^_(]", after))
    if word.isupper() and len(word) <= 4 and (re.match(r"\s*=", after) or "angle" in before[-8:]):
        return True
    return glued and len(word) == 2


def _trimmed(run: str) -> str:
    """Without the signs of the sentence around an expression."""
    while True:
        trimmed = re.sub(r"\b(?:and|or|per)\s*$|^\s*(?:and|or|per)\b", "", run)
        trimmed = trimmed.strip(" ,;:/*|'\n\t").lstrip("=<>)}]%°").rstrip("=<>([{-+^_\\")
        trimmed = re.sub(r"^[-+]\s+", "", trimmed)
        if len(re.findall(r"[(\[{]", trimmed)) < len(re.findall(r"[)\]}]", trimmed)):
            trimmed = re.sub(r"[)\]}]$", "", trimmed)
        elif len(re.findall(r"[(\[{]", trimmed)) > len(re.findall(r"[)\]}]", trimmed)):
            trimmed = re.sub(r"^[(\[{]", "", trimmed)
        if trimmed == run:
            return run
        run = trimmed


def _value_of(run: str, gold: str) -> str:
    """15 of `12 + 3 = 15`, and the last of several equations where one answer is asked for."""
    parts = [part for part in split(run, _JOINERS)[::2] if part]
    names = {part.partition("=")[0].strip() for part in parts if "=" in part}
    if len(parts) > 1 and len(names) > 1 and not re.search(rf"{_JOINERS}|\\pm", gold):
        run = parts[-1]
    left, equals, value = run.rpartition("=")
    if equals and value.strip() and not re.search(r"[^\W\d_]", re.sub(r"\\[a-zA-Z]+", "", left)):
        return value.strip()
    return run
