"""Benchmark items that lie on this machine, as rows that training must not hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunebook.data.records import records
from tunebook.data.rows import Reject, Row
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe

QUESTIONS = ("question", "question_stem", "ctx", "sentence", "goal", "premise", "query", "text")
"""Where the questions of benchmark items stand; elsewhere the longest text is taken."""


def benchmark_files(recipe: Recipe) -> list[Path]:
    """The files with items in `evaluate.benchmarks.data`; few-shot examples (`<task>.train.jsonl`) are none."""
    folder = recipe.evaluate.benchmarks.data
    if folder and not Path(folder).is_dir():
        raise UserError(f"evaluate.benchmarks.data: no folder {folder}")
    return (
        sorted(p.resolve() for p in Path(folder).glob("*.jsonl") if not p.stem.endswith(".train"))
        if folder
        else []
    )


def benchmark_items(recipe: Recipe) -> Iterator[Row]:
    """The questions of the benchmark items that lie on this machine, as rows; a gap (WinoGrande) also filled with either option."""
    for path in benchmark_files(recipe):
        for number, raw in records(str(path), "", "evaluate.benchmarks.data"):
            if isinstance(raw, Reject):
                raise UserError(f"evaluate.benchmarks.data: {raw.source_id}: {raw.reason}")
            texts = [v for v in raw.values() if isinstance(v, str)]
            text = next(
                (raw[name] for name in QUESTIONS if isinstance(raw.get(name), str)),
                max(texts, key=len, default=""),
            )
            filled = [
                text.replace("_", raw[o])
                for o in ("option1", "option2")
                if "_" in text and isinstance(raw.get(o), str)
            ]
            for asked in (text, *filled):
                yield Row(f"{path.stem}:{number}", "test", [{"role": "user", "content": asked}], [])
