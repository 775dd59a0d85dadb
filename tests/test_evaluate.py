"""Scores and their table, without a model."""

from __future__ import annotations

import json

import pytest

from tunebook import evaluate
from tunebook.generate import Answer, read_records
from tunebook.recipe import UserError, load_recipe


def prediction(i: int, correct: bool, **kwargs) -> dict:
    return {"index": i, "slice": "a", "correct": correct, "how": "boxed", "truncated": False, "tokens": 10} | kwargs


def test_shares_and_the_wilson_interval():
    predictions = [prediction(i, i < 57) for i in range(99)] + [prediction(99, False, how="none", truncated=True, slice="b", tokens=110)]
    summary = evaluate.summarise(predictions)
    assert summary["accuracy"] == 0.57
    assert summary["interval"] == pytest.approx([0.4721, 0.6627], abs=1e-4)  # Wilson, 57 of 100
    assert (summary["boxed"], summary["truncated"], summary["no_answer"], summary["mean_tokens"]) == (0.99, 0.01, 0.01, 11)
    assert summary["slices"]["b"]["n"] == 1
    table = evaluate.markdown(evaluate.COLUMNS, evaluate.cells({"base": summary}))
    assert "| base | all | 100 | 57.0% (47.2 to 66.3) | 99% | 1% | 1% | 11 |" in table


def test_a_number_in_a_cut_off_answer_is_not_its_answer():
    item = {"source_id": "x", "slice": "", "group": "", "difficulty": "", "gold": "15", "prompt": [{"role": "user", "content": "q"}]}
    assert evaluate._record(item, Answer("12 + 3 = 15", 9, truncated=False))["correct"]
    cut = evaluate._record(item, Answer("12 + 3 = 15", 9, truncated=True))
    assert (cut["correct"], cut["how"], cut["truncated"]) == (False, "none", True)


def test_a_limit_takes_items_evenly(monkeypatch):
    monkeypatch.setattr(evaluate, "load", lambda recipe, split: [{"gold": str(i)} for i in range(10)] + [{"gold": None}])
    items = evaluate._items(load_recipe(overrides={"evaluate.limit": 5}))
    assert [i["gold"] for i in items] == ["0", "2", "4", "6", "8"]
    assert len(evaluate._items(load_recipe(overrides={"evaluate.limit": 99}))) == 10
    monkeypatch.setattr(evaluate, "load", lambda recipe, split: [])
    with pytest.raises(UserError, match="no row with an answer"):
        evaluate._items(load_recipe())


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(json.dumps(prediction(1, True)) + "\n" + json.dumps(prediction(0, True)) + '\n{"index": 2, "sl')
    assert [p["index"] for p in read_records(path)] == [0, 1]
    assert read_records(tmp_path / "none.jsonl") == []


def test_an_unknown_stage_is_one_line():
    with pytest.raises(UserError, match="no stage 'stf': choose from base, sft, dpo"):
        evaluate.eval_stage(load_recipe(), "stf")
