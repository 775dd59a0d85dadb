"""Rows without an answer: which of them the model's own answers fill, and what becomes of the others."""

from __future__ import annotations

import json

import pytest

from tunebook.data import sources
from tunebook.data.own_answers import needs_answer, with_own_answers
from tunebook.data.prepare import data_stage
from tunebook.data.rows import Reject, Row
from tunebook.recipe.loading import load_recipe


def row(source_id: str, split: str = "train", use: str | None = None, answer: str = "") -> Row:
    completion = [{"role": "assistant", "content": answer}] if answer else []
    return Row(source_id, split, [{"role": "user", "content": "Why?"}], completion, use=use)


def test_which_rows_need_an_answer():
    assert needs_answer(row("a")) and needs_answer(row("a", use="sft"))
    assert not needs_answer(row("a", use="pairs"))
    assert not needs_answer(row("a", split="val")) and not needs_answer(row("a", split="test"))
    assert not needs_answer(row("a", answer="So.")) and not needs_answer(Reject("a", "schema"))


def test_a_row_for_each_answer_and_none_for_a_prompt_without():
    items = [row("a"), row("b"), row("c", use="pairs"), row("d", answer="So."), Reject("e", "schema")]
    rows = list(with_own_answers(items, {"a": ["One.", "Two."]}, is_asked=True))
    assert [item.source_id for item in rows] == ["a/0", "a/1", "c", "d", "e"]
    assert [item.answer for item in rows[:4]] == ["One.", "Two.", "", "So."]
    assert rows[0].prompt == items[0].prompt and items[0].completion == []
    # Without `data.own_answers` they are put aside, and said why.
    first, second, *_ = with_own_answers(items, {}, is_asked=False)
    assert isinstance(first, Reject) and isinstance(second, Reject)
    assert first.reason == "no answer" and "data.own_answers" in first.detail


PROMPTS = [
    {"prompt": "Name a city.", "instructions": ["lower"]},
    {"prompt": "Name a river.", "instructions": ["lower"], "completion": "the danube"},
    {"question": "Name a hill."},
]


@pytest.mark.parametrize("form", ["prompts", None])
def test_rows_of_prompts_alone(form, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(raw) + "\n" for raw in PROMPTS))
    source = {"path": str(path), "format": form, "split": "train"}
    recipe = load_recipe("smollm2-instructions", overrides={"data.sources": [source]})
    first, second, third = sources.read(recipe, tmp_path / "images")
    assert isinstance(third, Reject)
    assert second.answer == "the danube"
    if form is None:  # a form that was not asked for makes no row of half a one
        assert isinstance(first, Reject)
    else:
        assert first.completion == [] and json.loads(first.columns) == {"instructions": ["lower"]}
        assert third.reason == "missing column" and "prompt" in third.detail


def test_the_data_depend_on_how_answers_are_sampled():
    keys = []
    for changes in ({}, {"data.own_answers.samples": 8}, {"model.dtype": "float32"}, {"seed": 1}):
        keys.append(data_stage(load_recipe("smollm2-instructions", overrides=changes)).key)
    assert len(set(keys)) == 4
    # Of a recipe without it the model decides nothing in the data but its tokenizer.
    assert data_stage(load_recipe()).key == data_stage(load_recipe(overrides={"model.dtype": "float32"})).key
