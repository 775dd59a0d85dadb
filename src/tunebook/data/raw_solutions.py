"""Raw solutions to be rewritten: read from a source, and what comes back checked against them."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunebook.checkers.maths import boxed, verify
from tunebook.data import images
from tunebook.data.checks import NOT_AN_ANSWER
from tunebook.data.files import is_file, located
from tunebook.data.records import records
from tunebook.data.rows import Reject
from tunebook.generation.answers import fill
from tunebook.models import image_input
from tunebook.recipe.sections import CleanConfig

FORMAT = re.compile(r"^### Solution\n+1\. .+?\n### Final Answer\n+.*\\boxed\s*\{", re.DOTALL)

NO_LANGUAGE = ("GREEK", "MATHEMATICAL", "MODIFIER", "FEMININE", "MASCULINE")
"""First words of Unicode names of letters that mathematics uses in any language."""


@dataclass(frozen=True)
class Raw:
    """A row as it came, with what it needs to be asked and checked."""

    number: int
    question: str
    solution: str
    gold: str
    image: Path | bytes | None
    image_name: str = ""


def source_rows(config: CleanConfig) -> Iterator[Raw | Reject]:
    """The source's rows; what cannot be asked comes as a Reject."""
    path = located(config, config.source)
    find = images.finder(Path(path).parent if is_file(path) else Path.cwd())
    rows = records(path, config.hub_split, "clean.source")
    for number, raw in itertools.islice(rows, config.limit):
        yield raw if isinstance(raw, Reject) else _raw(config, find, number, raw)


def _raw(
    config: CleanConfig, find: Callable[[str], Path | bytes], number: int, raw: dict[str, Any]
) -> Raw | Reject:
    source_id = f"{Path(config.source).name}:{number}"
    kept = {key: value for key, value in raw.items() if isinstance(value, str | int | float)}
    for column in (config.question, config.solution):
        if not isinstance(raw.get(column), str) or not raw[column].strip():
            return Reject(source_id, "schema", f"{column}: no text", kept)
    gold = raw.get(config.answer) if config.answer else boxed(raw[config.solution])
    if gold is None or not str(gold).strip():
        return Reject(source_id, "no answer to check against", f"no {config.answer or 'boxed answer'}", kept)
    image: Path | bytes | None = None
    value = raw.get(config.image) if config.image else None
    name = "" if value is None else str(value)
    if name:
        try:
            image = find(name)
            if config.send_images:
                image_input.read(image)
        except image_input.BadImage as error:
            return Reject(source_id, error.reason, str(error), kept)
    return Raw(number, raw[config.question], raw[config.solution], str(gold), image, name)


def count_rows(config: CleanConfig) -> int | None:
    """Rows of a .jsonl file, for the progress bar."""
    if not config.source.endswith(".jsonl"):
        return config.limit
    with config.find_file(config.source).open("rb") as file:
        rows = sum(1 for line in file if line.strip())
    return min(rows, config.limit or rows)


def question_to(config: CleanConfig, template: str, raw: Raw) -> Any:
    """What the model is asked about a row: the prompt's text, with the image where it goes along."""
    parts = {"{question}": raw.question, "{solution}": raw.solution}
    text = fill(template, parts)
    if raw.image is None or not config.send_images:
        return text
    image = {"type": "image_url", "image_url": {"url": image_input.data_url(raw.image)}}
    return [image, {"type": "text", "text": text}]


def check(text: str, raw: Raw, truncated: bool, max_length_ratio: float) -> str | None:
    """Why a rewritten solution is not usable; None when it is."""
    if truncated:
        return "cut off: write it shorter"
    if not text.strip():
        return "empty"
    if NOT_AN_ANSWER.search(text):
        return "error text or refusal"
    if not FORMAT.search(text.strip() + "\n"):
        return (
            "not in the asked format: '### Solution', numbered steps from 1., '### Final Answer', "
            "\\boxed{...}"
        )
    if not verify(text, raw.gold, boxed_only=True).correct:
        return f"wrong answer: it ends in {boxed(text)!r}, the original in {raw.gold!r}"
    ratio = len(text) / max(len(raw.solution), 80)
    if not 1 / max_length_ratio <= ratio <= max_length_ratio:
        return f"length: {len(text)} characters for {len(raw.solution)} of the original"
    foreign = _scripts(text) - _scripts(raw.question + raw.solution)
    if foreign:
        return f"another language: letters of {', '.join(sorted(foreign))}"
    return None


def _scripts(text: str) -> set[str]:
    """The writing systems of a text's letters (`LATIN`, `CJK`, ...), those of mathematics apart."""
    scripts = set()
    for letter in filter(str.isalpha, set(text)):
        scripts.add(unicodedata.name(letter, "").partition(" ")[0])
    return scripts.difference(NO_LANGUAGE, [""])
