"""Answers that stop: an audit before the first step, and a look at answers after the last."""

from __future__ import annotations

import json

import pytest
import yaml

from tunebook.models import backend
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe

CHATML = {"model.chat_template": "prompt/chatml.jinja", "model.eos_token": "<|im_end|>"}
PLAIN = {"model.chat_template": "prompt/plain.jinja", "model.eos_token": "<|endoftext|>"}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, embedded):
    """A base model whose control tokens are untrained but for the end, and rows with one short answer."""
    backend.backend()
    import tiny_text

    folder = tmp_path_factory.mktemp("ends")
    tiny_text.qwen3(folder / "base", embedded, scale=16.0, untrained=True)
    rows = []
    for number in range(64):
        rows.append({"prompt": f"Which room has number {number}?", "completion": "It is the blue room."})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "extends": "smollm2",
        "model": {"base": str(folder / "base"), "dtype": "float32", "max_seq_length": 128},
        "data": {
            "sources": [{"format": "chat", "path": str(folder / "rows.jsonl"), "val": 0.2, "test": 0}],
            "near_duplicate": 1.0,
        },
        "sft": {
            "max_steps": 60,
            "learning_rate": 1e-2,
            "eval_strategy": "no",
            "save_strategy": "no",
            "per_device_train_batch_size": 8,
        },
    }
    (folder / "ends.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "ends.yaml"


def test_an_end_token_that_lora_cannot_learn_is_refused_before_the_first_step(recipe_file):
    from tunebook.training.sft import sft

    recipe = load_recipe(recipe_file, overrides=CHATML)
    with pytest.raises(UserError) as refused:
        sft(recipe)
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith("answers would not stop: <|im_end|> ends them") and "15 unused tokens" in line
    assert "model.eos_token=<|endoftext|> and model.chat_template=prompt/plain.jinja" in line
    assert line.endswith("lora.trainable_token_indices=[2]")
    assert not (recipe.run_dir / ".sft.partial" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "mend", [PLAIN, CHATML | {"lora.trainable_token_indices": [2]}], ids=["own end", "trained row"]
)
def test_its_mends_are_taken_and_the_answers_end(recipe_file, mend, capsys):
    from tunebook.training.sft import sft

    record = sft(load_recipe(recipe_file, overrides=mend))
    assert record["answers"] == {"asked": 8, "ended": 8}
    assert "8 of 8 answers of the trained model come to an end." in capsys.readouterr().out
    distances = record["audit"]["end_token"]
    assert bool(distances) == (mend is PLAIN)
    if distances:
        assert distances["unused"] == 16 and distances["spread"] < distances["usual"] / 10
        assert distances["distance"] > 10 * distances["spread"]


def test_answers_that_do_not_end_are_a_warning(recipe_file, capsys):
    from tunebook.training.sft import sft

    record = sft(load_recipe(recipe_file, overrides=PLAIN | {"sft.max_steps": 1, "sft.learning_rate": 1e-6}))
    assert record["answers"] == {"asked": 8, "ended": 0}
    assert "Warning: its answers mostly do not stop." in capsys.readouterr().out


def test_a_look_at_answers_that_fails_costs_no_training(recipe_file, capsys, monkeypatch):
    from tunebook.training import end_token
    from tunebook.training.sft import sft

    def full(*given, **options):
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(end_token, "generate", full)
    record = sft(load_recipe(recipe_file, overrides=PLAIN | {"sft.max_steps": 1}))
    assert record["answers"] == {} and record["metrics"]["steps"] == 1
    assert "No look at the answers: RuntimeError: CUDA out of memory." in capsys.readouterr().out


def test_rows_that_are_all_random_and_a_trained_end_among_equal_rows_pass(tiny, embedded):
    """SmolLM2's own `<|im_end|>` is near its untrained rows, and trained: answers end with it."""
    from types import SimpleNamespace

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunebook.training.end_token import audit_end_token

    found = {}
    for name, folder in (("random", tiny), ("SmolLM2", embedded)):
        model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
        found[name] = audit_end_token(SimpleNamespace(model=model), AutoTokenizer.from_pretrained(folder))
    assert found["random"]["spread"] == pytest.approx(found["random"]["usual"], rel=0.2)
    assert found["SmolLM2"]["spread"] < 0.01 and found["SmolLM2"]["distance"] > 0.4
