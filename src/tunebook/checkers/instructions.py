"""Does an answer obey? Instructions of a row that can be checked by a program.

A row's column `instructions` is a list such as `[{"max_words": 40}, "no_commas", {"include": "water"}]`, or
the same as JSON text. The kinds are those of IFEval (Zhou et al. 2023) that people use most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tunebook.checkers.texts import Scores, has_word, read_json, text_of
from tunebook.recipe.errors import did_you_mean, shorten
from tunebook.recipe.sections import CheckerConfig

QUOTES = ('""', "“”", "„“", "«»")


class BadInstruction(ValueError):
    """What is wrong with a row's instructions."""


def instructions(
    config: CheckerConfig, prompts: list[Any], completions: list[Any], *, instructions: list[Any], **_: Any
) -> Scores:
    """The share of the row's instructions that an answer obeys; None of a row that has none.

    With `partial: false` an answer that does not obey all of them has 0. Raises BadInstruction for one that
    is not known.
    """
    scores: Scores = []
    for completion, column in zip(completions, instructions, strict=True):
        of_row = read_instructions(column)
        text = text_of(completion)
        obeyed = 0
        for name, value in of_row:
            # An empty answer has no commas, and obeys nothing.
            obeyed += bool(text) and KINDS[name](text, value)
        if not of_row:
            scores.append(None)
        elif config.partial:
            scores.append(obeyed / len(of_row))
        else:
            scores.append(float(obeyed == len(of_row)))
    return scores


def read_instructions(column: Any) -> list[tuple[str, Any]]:
    """Name and value of each instruction of a row; the value of one that needs none is True.

    Raises BadInstruction that names what is wrong.
    """
    if isinstance(column, str) and column.lstrip().startswith(("[", "{")):
        try:
            column = json.loads(column)
        except (ValueError, RecursionError):
            raise BadInstruction(f"instructions: no JSON ({shorten(column)})") from None
    if column is None:
        return []
    # `{max_words: 40}` and `no_commas`, in a list or alone, become pairs of name and value.
    pairs: list[tuple[Any, Any]] = []
    for item in column if isinstance(column, list) else [column]:
        if isinstance(item, dict):
            # Rows of Parquet have all keys in all rows, those of other rows empty.
            pairs += [(name, value) for name, value in item.items() if value is not None]
        else:
            pairs.append((item, True))
    for name, value in pairs:
        if name not in KINDS:
            hint = did_you_mean(str(name), KINDS)
            raise BadInstruction(f"no instruction {shorten(name)}{hint}; there are {', '.join(KINDS)}")
        _check_value(name, value)
    return pairs


def _check_value(name: str, value: Any) -> None:
    """Raises BadInstruction for a value of the wrong type."""
    # To Python True is a number too.
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    is_text = isinstance(value, str) and bool(value)
    is_list = isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)
    if name in COUNTS:
        is_right = is_count
        example = f"{{{name}: 3}}"
    elif name in ("include", "exclude", "mention"):
        is_right = is_text or is_list
        example = f"{{{name}: water}}"
    elif name in ("begin", "end"):
        is_right = is_text
        example = f"{{{name}: The end.}}"
    else:
        is_right = value is True or (name == "json" and is_list)
        example = "{json: [topic, fact]}" if name == "json" else name
    if not is_right:
        raise BadInstruction(f"instruction {name}: {shorten(value)}; write it as {example}")


def count_words(text: str) -> int:
    """Words and numbers; `don't` and `well-known` are one each."""
    return len(re.findall(r"\w+(?:['’-]\w+)*", text))


def count_sentences(text: str) -> int:
    """Pieces that a full stop, question mark or exclamation mark ends before a space."""
    pieces = re.split(r"(?<=[.!?])[\"”')\]]*\s+|(?<=[。！？])", text)
    return sum(bool(re.search(r"\w", piece)) for piece in pieces)


def count_lines(text: str, start: str) -> int:
    """Lines that begin with a pattern, indented or not."""
    return len(re.findall(rf"^[ \t]*(?:{start})[ \t]+\S", text, re.MULTILINE))


def _words(value: str | list[str]) -> list[str]:
    words = [value] if isinstance(value, str) else value
    return [word.casefold() for word in words]


def _includes(text: str, value: Any) -> bool:
    return all(has_word(text.casefold(), word) for word in _words(value))


def _excludes(text: str, value: Any) -> bool:
    return not _mentions(text, value)


def _mentions(text: str, value: Any) -> bool:
    return any(has_word(text.casefold(), word) for word in _words(value))


def _repeats_nothing(text: str, _: Any) -> bool:
    """Whether a text goes on: of more than a dozen words two fifths and more are different."""
    words = text.casefold().split()
    return len(words) <= 12 or len(set(words)) >= 0.4 * len(words)


def _is_quoted(text: str, _: Any) -> bool:
    return len(text) > 2 and text[0] + text[-1] in QUOTES


def _is_json(text: str, keys: Any) -> bool:
    """Valid JSON; where keys are named, an object that has these and no others."""
    try:
        value = read_json(text)
    except (ValueError, RecursionError):
        return False
    return keys is True or (isinstance(value, dict) and set(value) == set(keys))


COUNTS = ("max_words", "min_words", "sentences", "bullets", "numbered")
"""Kinds whose value is a number."""

KINDS: dict[str, Callable[[str, Any], bool]] = {
    "max_words": lambda text, n: count_words(text) <= n,
    "min_words": lambda text, n: count_words(text) >= n,
    "sentences": lambda text, n: count_sentences(text) == n,
    "bullets": lambda text, n: count_lines(text, r"[-*•]") == n,
    "numbered": lambda text, n: count_lines(text, r"\d+[.)]") == n,
    "no_commas": lambda text, _: not re.search("[,，、]", text),
    "include": _includes,
    "exclude": _excludes,
    "mention": _mentions,
    "no_repetition": _repeats_nothing,
    "begin": lambda text, words: text.startswith(words),
    "end": lambda text, words: text.endswith(words),
    "lower": lambda text, _: text.islower(),
    "upper": lambda text, _: text.isupper(),
    "json": _is_json,
    "quotes": _is_quoted,
}
"""The kinds of instruction, each with whether a text that is not empty obeys it."""
