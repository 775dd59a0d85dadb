"""Checkers that look at an answer's text: `exact`, `contains`, `regex`, `json`.

Each has the signature of TRL's reward functions behind its configuration: prompts, completions and the rows'
columns in, a score for each completion out; None where nothing can be said.
"""

from __future__ import annotations

import functools
import json as json_module
import re
from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError, first_line, shorten
from tunebook.recipe.files import read_text
from tunebook.recipe.sections import CheckerConfig

Scores = list[float | None]

UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
"""Letters of scripts that put no space between words."""


def text_of(completion: Any) -> str:
    """What a completion says, which is text or messages; without the thinking before it."""
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    return str(text).rpartition("</think>")[2].strip()


def exact(
    config: CheckerConfig, prompts: list[Any], completions: list[Any], *, gold: list[str | None], **_: Any
) -> Scores:
    """1 where an answer is the row's, but for spaces."""
    scores: Scores = []
    for completion, wanted in zip(completions, gold, strict=True):
        if wanted is None:
            scores.append(None)
        else:
            scores.append(float(_plain(text_of(completion), config) == _plain(wanted, config)))
    return scores


def contains(
    config: CheckerConfig, prompts: list[Any], completions: list[Any], *, gold: list[str | None], **_: Any
) -> Scores:
    """1 where all words of the recipe, or else the row's answer, stand in an answer."""
    scores: Scores = []
    for completion, row_answer in zip(completions, gold, strict=True):
        wanted = config.words
        if not wanted:
            if row_answer is None:
                scores.append(None)
                continue
            wanted = [row_answer]
        text = _plain(text_of(completion), config)
        missing = [word for word in wanted if not has_word(text, _plain(word, config))]
        scores.append(float(not missing))
    return scores


def regex(config: CheckerConfig, prompts: list[Any], completions: list[Any], **_: Any) -> Scores:
    """1 where the recipe's pattern is found in an answer."""
    flags = re.IGNORECASE if config.ignore_case else 0
    pattern = re.compile(str(config.pattern), flags)
    return [float(bool(pattern.search(text_of(completion)))) for completion in completions]


def json(config: CheckerConfig, prompts: list[Any], completions: list[Any], **_: Any) -> Scores:
    """1 where an answer is JSON, and fits the recipe's schema where there is one.

    A Markdown fence round the whole answer is no part of it, as in IFEval (Zhou et al. 2023).
    """
    validator = load_schema(config)
    scores: Scores = []
    for completion in completions:
        try:
            value = read_json(text_of(completion))
        except (ValueError, RecursionError):
            scores.append(0.0)
        else:
            scores.append(float(validator is None or validator.is_valid(value)))
    return scores


def read_json(text: str) -> Any:
    """The value of an answer in JSON, in a Markdown fence or bare. Raises ValueError for anything else."""
    # Chat models wrap JSON so whatever they are told. Not by a pattern: some texts would take it hours.
    fence = "```"
    if len(text) > 6 and text.startswith(fence) and text.endswith(fence):
        language, _, inside = text[3:-3].partition("\n")
        if language.strip().lower() in ("", "json"):
            text = inside

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")  # Python would read NaN and Infinity

    return json_module.loads(text, parse_constant=refuse)


def has_word(text: str, word: str) -> bool:
    """Whether a word, or several, stand in a text: `12` is not in `112`."""
    if UNSPACED.search(word):
        return word in text
    # A word may begin or end in a sign, as `C++` does, beside which there is no boundary.
    start = r"(?<!\w)" if re.match(r"\w", word) else ""
    end = r"(?!\w)" if re.search(r"\w$", word) else ""
    return re.search(f"{start}{re.escape(word)}{end}", text) is not None


def _plain(text: str, config: CheckerConfig) -> str:
    """A text as it is compared: single spaces, and perhaps no capitals."""
    text = " ".join(text.split())
    return text.casefold() if config.ignore_case else text


def load_schema(config: CheckerConfig) -> Any:
    """What says whether a value fits the recipe's schema; None without one. Raises UserError."""
    schema = config.json_schema
    if schema is None:
        return None
    if isinstance(schema, dict):
        return _validator(json_module.dumps(schema), "the schema")
    path = config.find_file(schema)
    return _validator(read_text(path), path.name)


@functools.cache
def _validator(text: str, name: str) -> Any:
    import jsonschema
    from referencing.jsonschema import EMPTY_REGISTRY

    try:
        schema = json_module.loads(text)
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
    except (ValueError, jsonschema.SchemaError) as error:
        raise UserError(f"{shorten(name)} is no JSON schema: {shorten(first_line(error), 200)}") from None
    # With a registry of its own, a `$ref` to another place is an error and never fetched.
    return kind(schema, registry=EMPTY_REGISTRY)


def schema_file(config: CheckerConfig) -> Path | None:
    """The file of a checker's schema, where it has one. Raises UserError when it is not there."""
    if isinstance(config.json_schema, str):
        return config.find_file(config.json_schema)
    return None
