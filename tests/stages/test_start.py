"""DPO without SFT: from the base model, and from an adapter that plain PEFT has saved; prose is evaluated."""

from __future__ import annotations

import json
import math

import pytest
import yaml

from tunebook.evaluation.evaluate import evaluate
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import read_json
from tunebook.training.dpo import dpo


@pytest.fixture
def preferences(tiny, tmp_path):
    """A function that makes a recipe of nothing but 30 preference pairs."""
    lines = []
    for i in range(30):
        row = {
            "prompt": f"What is number {i}?",
            "chosen": f"It is {i}.",
            "rejected": f"A cheese, {i} years old.",
        }
        lines.append(json.dumps(row))
    (tmp_path / "p.jsonl").write_text("\n".join(lines) + "\n")

    def make(**dpo_keys):
        keys = {"max_steps": 2, "logging_steps": 1, "save_steps": 2, "learning_rate": 1e-3, **dpo_keys}
        content = {
            "extends": "smollm2",
            "model": {"base": str(tiny), "dtype": "float32"},
            "pairs": {"dataset": "p.jsonl", "val": 0.2},
            "dpo": {**keys, "loss_type": ["sigmoid"], "loss_weights": None},
            "evaluate": {"max_new_tokens": 8},
        }
        (tmp_path / "prefs.yaml").write_text(yaml.safe_dump(content))
        return load_recipe(tmp_path / "prefs.yaml")

    return make


def test_a_preference_set_alone_trains_from_the_base_model_and_is_evaluated(preferences, tiny):
    recipe = preferences()
    record = dpo(recipe)
    assert record["audit"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert set(record["inputs"]) == {"pairs"}
    results = evaluate(recipe)
    assert list(results) == ["base", "dpo"]
    # By hand, with plain transformers: the sum of -log p over the answers of the pairs kept for val.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunebook.evaluation.held_out import held_out_answers

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    pairs = held_out_answers(recipe, None)
    assert 1 <= len(pairs) == results["base"]["n"]
    nats = tokens = 0
    for pair in pairs:
        head = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(pair["prompt"] + pair["chosen"], return_dict=False)
        with torch.no_grad():
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for at in range(len(head), len(ids)):
            nats -= float(logps[at - 1, ids[at]])
            tokens += 1
    assert results["base"]["loss"] == pytest.approx(nats / tokens, rel=1e-4)
    assert results["base"]["tokens"] == tokens
    (compared,) = read_json(recipe.run_dir / "eval" / "summary.json")["losses"]
    assert compared["second"] == "dpo" and 0 <= compared["prefers"] <= 1


def test_an_adapter_of_plain_peft_is_the_start_and_the_reference(preferences, tiny, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    shape = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"], use_rslora=True)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), shape)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(tmp_path / "tuned")

    recipe = preferences(start="tuned", learning_rate=0.0)
    record = dpo(recipe)
    # Policy and reference are both the adapter: ln 2 and no margin, though the adapter itself is no zero.
    assert record["audit"]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert record["audit"]["margin"] == pytest.approx(0, abs=1e-4)
    assert set(record["inputs"]) == {"pairs", "start"}
    before = load_file(tmp_path / "tuned" / "adapter_model.safetensors")
    after = load_file(recipe.run_dir / "dpo" / "adapter" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    # Without a learning rate what DPO leaves is what it was given.
    assert all(torch.equal(before[name], after[name].to(before[name].dtype)) for name in before)
    config = read_json(recipe.run_dir / "dpo" / "adapter" / "adapter_config.json")
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 12, True)
    assert list(evaluate(recipe)) == ["base", "start", "dpo"]

    # What is exported has that shape too: the same logits as plain PEFT's model.
    from tunebook.models.whole import load_whole
    from tunebook.runs.stages import policy_name

    assert policy_name(recipe, 1) == "start"
    model, _ = load_whole(recipe, "dpo")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        theirs = tuned.eval()(ids).logits
        ours = model.eval()(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


def test_the_control_sees_the_chosen_answers_alone_and_is_compared(preferences):
    from safetensors.torch import load_file

    plain = preferences()
    dpo(plain)
    before = load_file(plain.run_dir / "dpo" / "adapter" / "adapter_model.safetensors")
    key = read_json(plain.run_dir / "dpo" / "stage.json")["key"]
    recipe = preferences(control=True)
    assert dpo(recipe)["key"] == key  # the control changes nothing in DPO's own adapter
    weights = load_file(recipe.run_dir / "dpo-control" / "adapter" / "adapter_model.safetensors")
    assert before.keys() == weights.keys()
    assert any(not before[name].equal(weights[name]) for name in before)
    record = read_json(recipe.run_dir / "dpo-control" / "stage.json")
    assert record["settings"]["dpo"]["loss_type"] == ["sft"]
    assert record["metrics"]["steps"] == 2 and record["inputs"].keys() == {"pairs"}
    # Its loss is that of chosen by itself: more than ln 2 for a model of random weights.
    assert record["metrics"]["train_loss"] > 2
    assert list(evaluate(recipe)) == ["base", "dpo-control", "dpo"]
    losses = read_json(recipe.run_dir / "eval" / "summary.json")["losses"]
    assert [(row["first"], row["second"]) for row in losses] == [
        ("base", "dpo"),
        ("base", "dpo-control"),
        ("dpo-control", "dpo"),
    ]
    assert "dpo-control" in read_json(recipe.run_dir / "manifest.json")["stages"]
    from tunebook.evaluation import report

    written = report.write(recipe.run_dir)
    (text,) = [path.read_text() for path in written if path.suffix == ".md"]
    assert "What preference added to likelihood (dpo against dpo-control)" in text
