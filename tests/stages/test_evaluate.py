"""Scores and their table, without a model."""

from __future__ import annotations

import json

import pytest

from tunebook.data.prepare import prepare
from tunebook.evaluation import evaluate
from tunebook.models import adapters, backend
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def test_a_model_that_learnt_other_rows_is_not_evaluated(monkeypatch, tmp_path, capsys):
    """Held-out rows of new data may be train rows of the old ones. The same train split under another key is no harm."""
    rows = tmp_path / "rows.jsonl"
    asked = (
        {"prompt": f"What is {i} + {i}?", "completion": f"\\boxed{{{2 * i}}}", "answer": str(2 * i)}
        for i in range(60)
    )
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))

    def recipe(**changes):
        source = {"format": "chat", "path": str(rows), "val": 0.1, "test": 0.1} | changes
        return load_recipe(overrides={"data.sources": [source]})

    trained = prepare(recipe())["fingerprints"]["train"]
    folder = recipe().run_dir / "sft"
    (folder / "adapter").mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps({"key": "k", "learnt": [trained]}))
    monkeypatch.setattr(backend, "backend", lambda: "cpu")
    monkeypatch.setattr(adapters, "load_stages", lambda *given: pytest.fail("a model is loaded"))
    with pytest.raises(
        UserError, match=r"sft was trained on other rows than the train split .*`uv run tunebook sft --set "
    ):
        evaluate.evaluate(recipe(test=0.4), ["sft"])
    evaluate._refuse_learnt(recipe(), "sft", prepare(recipe())["fingerprints"]["train"])
    (folder / "stage.json").write_text(
        json.dumps({"key": "k", "settings": {"model": {"base": "another", "revision": None}}})
    )
    evaluate.eval_stage(recipe(), "sft")
    evaluate.eval_stage(recipe(), "sft")
    assert capsys.readouterr().out.count("was trained with model.base another, not smollm2") == 1
