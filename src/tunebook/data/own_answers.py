"""Rejection sampling: answers of the base model's own that the recipe's check finds right, as rows for SFT.

A row without an answer that SFT is to learn from is answered `data.own_answers.samples` times before data are
prepared (`tunebook prepare`). What is right is its answer; what is never answered right is no row.

Source: Yuan et al. 2023 (arXiv 2308.01825).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from tunebook.checkers.check import Check
from tunebook.checkers.instructions import BadInstruction
from tunebook.data import sources
from tunebook.data.rows import Reject, Row, evenly, rejected
from tunebook.data.storage import read_parquet, write_parquet
from tunebook.generation.answers import Answer, Sampling, seed_of
from tunebook.generation.engines import COMPARED, Engine, choose
from tunebook.generation.generate import answer_file, drop_other_answers
from tunebook.models import backend
from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import OwnAnswersConfig, Recipe
from tunebook.runs.files import intact
from tunebook.runs.stage import Stage

Texts = dict[str, list[str]]
"""The right answers to a row, by its source id."""


def own_answers(recipe: Recipe) -> Texts:
    """The base model's right answers to the rows that need one; sampled where that is not done yet."""
    config = recipe.data.own_answers
    if config is None:
        return {}
    stage = own_answers_stage(recipe)
    if not stage.done:
        backend.backend()  # Unsloth comes before whatever imports transformers
        with stage.open() as folder:
            stage.record = _sample(recipe, config, stage, folder)
        backend.release()
    record = stage.result
    answered = record["prompts"] - record["pass_counts"]["0"]
    print(f"own answers: {answered} of {record['prompts']} prompts have right ones, {record['rows']} rows")
    texts: Texts = {}
    for row in read_parquet(intact(stage.dir / "rows.parquet")):
        texts.setdefault(row["source_id"], []).append(row["text"])
    return texts


def own_answers_stage(recipe: Recipe) -> Stage:
    """The stage of the sampled answers; it comes before the data's own."""
    settings = {
        "data": recipe.data.model_dump(mode="json"),
        "model": recipe.model.model_dump(mode="json"),
        "seed": recipe.seed,
        **Check(recipe.check).settings,
    }
    inputs = {**sources.content_hashes(recipe), **Check(recipe.check).inputs}
    return Stage(recipe, "own-answers", settings, inputs)


def needs_answer(item: Row | Reject) -> TypeGuard[Row]:
    """Whether SFT would learn from a row, and there is nothing to learn."""
    return isinstance(item, Row) and item.split == "train" and item.use != "pairs" and not item.completion


def with_own_answers(items: Iterable[Row | Reject], texts: Texts, is_asked: bool) -> Iterator[Row | Reject]:
    """The items of all sources, with a row for each answer in place of those that need one.

    Args:
        is_asked: Whether the recipe has `data.own_answers`.
    """
    for item in items:
        if not isinstance(item, Row) or not needs_answer(item):
            yield item
        elif not is_asked:
            advice = "set data.own_answers, or say `use: pairs` of its source"
            yield rejected(item, "no answer", advice)
        else:
            for number, text in enumerate(texts.get(item.source_id, [])):
                completion = [{"role": "assistant", "content": text}]
                yield dataclasses.replace(item, source_id=f"{item.source_id}/{number}", completion=completion)


def _sample(recipe: Recipe, config: OwnAnswersConfig, stage: Stage, folder: Path) -> dict[str, Any]:
    """Answer all rows that need it, write the right answers, and say what was found."""
    check = Check(recipe.check)
    rows = [item for item in sources.read(recipe, folder / "images") if needs_answer(item)]
    # Each row `samples` times, one after the other; each sample has a seed that depends on nothing else.
    asked = []
    seeds = []
    for row in rows:
        for k in range(config.samples):
            asked.append(row)
            seeds.append(seed_of(f"{recipe.seed}/own/{row.source_id}/{k}"))

    def record(i: int, answer: Answer) -> dict[str, Any]:
        return {
            "source_id": asked[i].source_id,
            "text": answer.text,
            "tokens": answer.tokens,
            "truncated": answer.truncated,
            "correct": _is_right(check, asked[i], answer),
        }

    # What an interrupted run has answered is not asked again.
    prompts = [row.prompt for row in asked]
    images = [row.images for row in asked]
    sampling = Sampling(config.max_new_tokens, config.batch_size, config.temperature, seeds)
    path = folder / "samples.jsonl"
    with _engine(recipe, config, prompts) as engine:
        depends_on = [stage.settings["model"], stage.settings.get("check"), *engine.depends_on]
        drop_other_answers(path, prompts, sampling, depends_on)
        samples = answer_file(path, engine.open("base"), prompts, sampling, record, "own answers", images)

    kept = []
    pass_counts = Counter[int]()
    for start in range(0, len(samples), config.samples):
        right = []
        for sample in samples[start : start + config.samples]:
            if sample["correct"]:
                right.append(sample)
        pass_counts[len(right)] += 1
        # The same text twice teaches nothing new.
        texts = list(dict.fromkeys(sample["text"].strip() for sample in right))
        for text in texts[: config.keep]:
            kept.append({"source_id": right[0]["source_id"], "text": text})
    write_parquet(kept, folder / "rows.parquet", source_id="string", text="string")
    return {
        "prompts": len(rows),
        "rows": len(kept),
        "right": sum(sample["correct"] for sample in samples) / max(1, len(samples)),
        "pass_counts": {str(k): pass_counts[k] for k in range(config.samples + 1)},
        **engine.record("base"),
    }


def _is_right(check: Check, row: Row, answer: Answer) -> bool:
    try:
        return check.judge(vars(row), answer.text, answer.truncated).correct is True
    except BadInstruction:  # `prepare` puts such a row aside
        return False


def _engine(recipe: Recipe, config: OwnAnswersConfig, prompts: list[Messages]) -> Engine:
    """What answers as the base model: transformers or vLLM."""
    if recipe.generate.engine == "server":
        raise UserError("data.own_answers takes no server: set generate.engine to auto, transformers or vllm")
    kind = choose(recipe, None, "data.own_answers", len(prompts))
    compared = evenly(prompts, COMPARED)
    return Engine(recipe, "own_answers", kind, ["base"], None, compared, len(prompts), config.max_new_tokens)
