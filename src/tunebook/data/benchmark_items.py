"""Benchmark items that lie on this machine, as rows that training must not hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunebook.data.records import records
from tunebook.data.rows import Raw, Reject, Row
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe

# Where the questions of benchmark items stand; elsewhere the longest text is taken.
QUESTIONS = ("question", "question_stem", "ctx", "sentence", "goal", "premise", "query", "text")


def benchmark_files(recipe: Recipe) -> list[Path]:
    """The files with items in `evaluate.benchmarks.data`; not few-shot examples (`<task>.train.jsonl`)."""
    config = recipe.evaluate.benchmarks
    if not config.data:
        return []
    folder = config.find_path(config.data)
    if not folder.is_dir():
        raise UserError(f"evaluate.benchmarks.data: no folder {config.data}")
    files = sorted(folder.glob("*.jsonl"))
    return [file.resolve() for file in files if not file.stem.endswith(".train")]


def benchmark_items(recipe: Recipe) -> Iterator[Row]:
    """The questions of the benchmark items that lie on this machine, as rows."""
    for path in benchmark_files(recipe):
        for number, raw in records(str(path), "", "evaluate.benchmarks.data"):
            if isinstance(raw, Reject):
                raise UserError(f"evaluate.benchmarks.data: {raw.source_id}: {raw.reason}")
            for question in _questions(raw):
                yield Row(f"{path.stem}:{number}", "test", [{"role": "user", "content": question}], [])


def _questions(raw: Raw) -> Iterator[str]:
    """The question of an item; one with a gap (WinoGrande) also with either option in it."""
    texts = {name: text for name, text in raw.items() if isinstance(text, str)}
    question = max(texts.values(), key=len, default="")
    for name in QUESTIONS:
        if name in texts:
            question = texts[name]
            break
    yield question
    if "_" in question:
        for option in ("option1", "option2"):
            if option in texts:
                yield question.replace("_", texts[option])
