"""The retention suite on the tiny model: likelihoods in batches, and an evaluation with the suite."""

from __future__ import annotations

import json

import pytest

from tunebook.data import retention_items
from tunebook.evaluation import evaluate, first_screen, likelihood, retention
from tunebook.evaluation.likelihood import choice_probabilities
from tunebook.generation.local import local
from tunebook.models.adapters import load_stages
from tunebook.recipe.loading import load_recipe


def in_order(batches):
    found = {}
    for batch in batches:
        found |= batch
    return [found[i] for i in sorted(found)]


def test_likelihoods_in_a_batch_are_those_of_one_text_alone(tiny_recipe, monkeypatch):
    import torch

    model, tokenizer = load_stages(load_recipe(tiny_recipe), {"base": None})
    items = [item for item in retention_items.retention_items() if "choices" in item][::40]
    with local(model, tokenizer, None) as source:
        together = in_order(choice_probabilities(source, items, batch_size=3, label="together"))
        alone = in_order(choice_probabilities(source, items, batch_size=1, label="alone"))
        monkeypatch.setattr(likelihood, "only_looks_back", lambda model: False)
        whole_rows = in_order(choice_probabilities(source, items, batch_size=3, label="whole rows"))
        item = items[0]
        whole = tokenizer.apply_chat_template(item["prompt"], tokenize=False, add_generation_prompt=True)
        logps = []
        for choice in item["choices"]:
            before = tokenizer(whole + item.get("lead", "").rstrip(), add_special_tokens=False)["input_ids"]
            text = whole + item.get("lead", "") + choice + tokenizer.eos_token
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            logits = source.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            of_tokens = logits.gather(-1, ids[0, 1:, None])[:, 0]
            logps.append(float(of_tokens[len(before) - 1 :].sum()))
    assert len(together) == len(items) > 3
    for first, second, third in zip(together, alone, whole_rows, strict=True):
        assert first == pytest.approx(second, abs=1e-4) and sum(first) == pytest.approx(1)
        assert first == pytest.approx(third, abs=1e-4)
    assert together[0] == pytest.approx(torch.tensor(logps).softmax(0).tolist(), abs=1e-4)


def test_an_evaluation_with_the_suite(tiny_recipe, tmp_path, monkeypatch):
    """A few items of each skill; asked once more, nothing is answered again."""
    few = tmp_path / "few"
    few.mkdir()
    for path in retention_items.FOLDER.glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        (few / path.name).write_text("\n".join(lines[:4]), encoding="utf-8")
    monkeypatch.setattr(retention_items, "FOLDER", few)
    monkeypatch.setattr(retention, "MAX_NEW_TOKENS", 4)
    overrides = {"evaluate.retention": True, "evaluate.limit": 4, "evaluate.max_new_tokens": 4}
    recipe = load_recipe(tiny_recipe, overrides=overrides)
    results = evaluate.evaluate(recipe)
    assert results["base"]["retention"]["all"]["n"] == 32
    path = recipe.run_dir / "eval" / "base" / retention.FILE
    records = [json.loads(line) for line in path.open()]
    assert [record["skill"] for record in records[::4]] == list(retention_items.SKILLS)
    assert all(0 <= record["score"] <= 1 for record in records)
    assert first_screen.sentence(json.loads((recipe.run_dir / "eval" / "summary.json").read_text())) == ""

    monkeypatch.setattr(evaluate.backend, "backend", lambda: pytest.fail("a model is loaded"))
    assert evaluate.evaluate(recipe) == results
