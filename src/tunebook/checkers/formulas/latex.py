"""One way of writing for all final answers: Unicode and LaTeX, as people and models write them, made plain.

`normalise` is the only clean-up. What it returns is a small LaTeX: `\\frac{}{}`, `\\sqrt{}`, `^{}`, `\\pi`,
`\\cdot`, `\\le`, `\\{`, `°` for degrees and `%`; words and units stand as they are, with spaces round them.
"""

from __future__ import annotations

import re
import unicodedata

_SIGNS: dict[str, str | int | None] = {
    "−": "-", "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "﹣": "-",
    "×": r"\cdot ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ",
    "π": r"\pi ", "∞": r"\infty ", "∠": r"\angle ", "△": r"\triangle ", "∅": r"\emptyset ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "ℝ": r"\mathbb{R}", "√": r"\sqrt ", "∛": r"\sqrt[3] ",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "θ": r"\theta ", "λ": r"\lambda ", "φ": r"\phi ",
    "˚": "°", "º": "°", "′": "'", "’": "'", "″": '"', "”": '"', "∶": ":", "、": ",", "。": ".",
    "〈": r"\langle ", "〉": r"\rangle ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "∥": r"\parallel ", "⊥": r"\perp ",
}  # fmt: skip
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"
_FRACTIONS = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"

# Commands that only say how something looks, with their argument or without.
_FONTS = (
    r"text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it|sf|tt|cal|normal)|boldsymbol|bm|mbox|hbox|operatorname\*?"
    r"|emph|underline|ensuremath|num|si|unit|fbox|boxed"
)
_LOOKS = r"displaystyle|textstyle|limits|rm|bf|it|left|right|middle|[bB]igg?[lrm]?"
_SPACES = (
    r"(?<!\\)\\[,;:> ]|~|\\(?:q?quad|thinspace|enspace|nobreakspace)(?![a-zA-Z])|\\[hv]space\*?\{[^{}]*\}"
)

# What has several names.
_COMMANDS = {
    r"\\[dtc]frac(?![a-zA-Z])": r"\\frac",
    r"\\(?:leq?|leqslant)(?![a-zA-Z])": r"\\le ",
    r"\\(?:geq?|geqslant)(?![a-zA-Z])": r"\\ge ",
    r"\\neq?(?![a-zA-Z])": r"\\ne ",
    r"\\lt(?![a-zA-Z])|&lt;": "<",
    r"\\gt(?![a-zA-Z])|&gt;": ">",
    r"<=|=<": r"\\le ",
    r">=": r"\\ge ",
    r"(?<![\d)])!=": r"\\ne ",
    r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}": r"\\emptyset ",
    r"\\langle(?![a-zA-Z])": "(",
    r"\\rangle(?![a-zA-Z])": ")",
    r"\\lbrace(?![a-zA-Z])": r"\\{",
    r"\\rbrace(?![a-zA-Z])": r"\\}",
    r"\\[lr]?vert(?![a-zA-Z])": "|",
    r"\\(?:ldots|cdots|dotsc|dots)(?![a-zA-Z])|\.\.\.": r"\\dots ",
    r"\\(?:simeq|sim|doteq)(?![a-zA-Z])": r"\\approx ",
    r"\b(?:approximately|approx\.|about|roughly) (?=[\d\\])": r"\\approx ",
    r"\\(?:times|ast)(?![a-zA-Z])|\*": r"\\cdot ",
    r"\\div(?![a-zA-Z])": "/",
    r"\\colon(?![a-zA-Z])": ":",
    r"\\lg(?![a-zA-Z])": r"\\log_{10}",
    r"\\log_\{?e\}?(?![a-zA-Z])": r"\\ln ",
    r"\\(?:text)?color\{\w+\}|`": "",
    r"\\cup(?![a-zA-Z])": r" \\cup ",
    r"\\%|\bper ?cent\b": "%",
    r"\b(?:all )?real numbers\b|\ball reals\b": r"\\mathbb{R}",
    r"\^\s*\{?\s*\\prime\s*\}?|\\prime(?![a-zA-Z])": "'",
    r"\\(?:text)?degree(?![a-zA-Z])|\^\s*\{?\s*(?:\\circ(?![a-zA-Z])|°|o(?![a-zA-Z]))\s*\}?": "°",
    r"(?<![a-zA-Z])deg(?:rees?)?\b": "°",
    r"°\s*(?:C|[Cc]elsius)(?![a-zA-Z])": " °C",
    r"°\s*(?:F|[Ff]ahrenheit)(?![a-zA-Z])": " °F",
}
_FUNCTIONS = r"(?<![\\a-zA-Z])(pi|infty|sqrt|sin|cos|tan|log|ln|exp)(?![a-zA-Z])"
_PREFIX = (
    r"^(?:(?:so|thus|hence|therefore)\b,?\s*)?(?:the\s+)?(?:final\s+|correct\s+)?"
    r"(?:(?:answer|ans|result|solution|value)s?\s*(?:(?:is|are)\b\s*:?|[:=])|答案?\s*[:是为]+)\s*"
)
# 5 (by Pythagoras), 12 (approximately), 5 because 2 + 3 = 5
_REMARK = r"\s+\((?:[a-zA-Z]{4,}|(?:[a-z]{3,}|by|or|in|as|is) [^()]*)\)$|\s(?:because|since)\s.*$"


def plain_signs(text: str) -> str:
    """Signs of Unicode as ASCII or LaTeX: `²`, `½`, `√`, full-width digits. Nothing else changes."""
    # A dash behind a word is punctuation; anywhere else it is a minus.
    text = re.sub(r"(?<=[^\W\d_]{2}) [–—] ", ", ", text)
    text = re.sub(f"(?<=\\d)\\s?(?=[{_FRACTIONS}])", " ", text)
    text = re.sub(f"[{_SUPERSCRIPTS}]+", r"^{\g<0>}", text)
    text = re.sub(f"[{_SUBSCRIPTS}]+", r"_{\g<0>}", text)
    # Before NFKC, which makes an `o` of º, and after it for what it brings, such as the slash of ½.
    for _ in range(2):
        text = text.translate(str.maketrans(_SIGNS))
        # ①②③ are three statements, and not 123.
        text = re.sub(r"[^①-⑳]+", lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return text


def normalise(answer: str) -> str:
    r"""A final answer in one way of writing; see the head of this module."""
    text = re.sub(r"\s+", " ", plain_signs(answer)).strip()
    text = _without_dollars(text)
    # 1'234'567, 1\,234\,567, 1{,}234 and 1 234 567
    text = re.sub(r"\{,\}", ",", text.replace(r"\!", ""))
    text = re.sub(r"(?<=\d)(?:\\,|\\ |'|~| )(?=\d{3}(?!\d))(?!\d{3}\s*/)", "", text)
    text = re.sub(_SPACES, " ", text)
    # Python's power; any other pair of stars is Markdown's bold.
    text = re.sub(r"(?<=[\w)])\*\*(?=[\d(a-z])", "^", text)
    text = re.sub(r"\*\*|__", "", text)
    text = re.sub(rf"\\(?:{_LOOKS})(?![a-zA-Z])\.?", "", text)
    text = re.sub(r"\\(?:qty|SI)\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1 \2", text)
    text = re.sub(r"\\begin\{array\}\{\w\}([^&\\]*)\\end\{array\}", r"\1", text)
    array = r"[(\[]\s*\\begin\{array\}\{[^{}]*\}((?:(?!\\end).)*)\\end\{array\}\s*[)\]]"
    text = re.sub(array, r"\\begin{pmatrix}\1\\end{pmatrix}", text, flags=re.DOTALL)
    # From the inside out.
    for _ in range(4):
        text = re.sub(rf"\\(?:{_FONTS})\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}", r" \1 ", text)
    text = re.sub(rf"\\(?:{_FONTS})(?![a-zA-Z])", "", text)
    for pattern, plain in _COMMANDS.items():
        text = re.sub(pattern, plain, text)
    text = re.sub(_FUNCTIONS, r"\\\1 ", text)
    text = _with_braces(text)
    text = re.sub(_PREFIX, "", text.strip(), flags=re.IGNORECASE)
    text = re.sub(_REMARK, "", text)
    text = re.sub(r"\\(begin|end)\{[a-zA-Z]?matrix\}", r"\\\1{pmatrix}", text)
    return _spaced(text)


def _without_dollars(text: str) -> str:
    r"""Without the marks of formulas. A `\$`, and a `$` that is left alone, is money."""
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)
    text = re.sub(r"(?<!\\)\$\$", " ", text)
    text = re.sub(r"(?<!\\)\$(?!\s)((?:[^$\\]|\\.)+)(?<!\s)\$", r" \1 ", text)
    text = re.sub(r"\\pounds(?![a-zA-Z])", "£", re.sub(r"\\euro?(?![a-zA-Z])", "€", text))
    return re.sub(r"(?:\bUS\s?)?\\?\$", " USD ", text)


def _with_braces(text: str) -> str:
    r"""`\frac{3}{4}` of `\frac34`, `\sqrt{2}` of `\sqrt2`, `\sqrt 2` and `\sqrt(2)`, `^{2}` of `^2`."""
    text = re.sub(r"\\frac\s*(\d|\\pi|[a-zA-Z])\s*(?=[\d\\{a-zA-Z])", r"\\frac{\1}", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*(\d|\\pi(?![a-zA-Z])|[a-zA-Z])", r"\1{\2}", text)
    text = re.sub(r"(\\sqrt)\s*(\[\w+\])?\s*\(([^()]*)\)", r"\1\2{\3}", text)
    text = re.sub(r"(\\sqrt)\s*(\[\w+\])?\s*(\d+(?:\.\d+)?|\\pi(?![a-zA-Z])|[a-zA-Z])", r"\1\2{\3}", text)
    text = re.sub(r"\^\s*(-?\d+|[a-zA-Z])", r"^{\1}", text)
    return re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)


def _spaced(text: str) -> str:
    """Single spaces, and none where they say nothing."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ?([\^_{}]) ?(?![a-zA-Z])", r"\1", text)
    text = re.sub(r"([\^_]\{) (?=\w)|([\^_]) (?=\w)", r"\1\2", text)
    text = re.sub(r"(?<=\{) | (?=\})", "", text)
    # Stops at the end; but n! is a factorial.
    text = re.sub(r"(?:[\s.,;:?\\]|(?<=[a-zA-Z]{2})!)+$", "", text.lstrip(" ,;:"))
    return re.sub(r"^\{([^{},]*)\}$", r"\1", text)
