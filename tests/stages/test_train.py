"""SFT and evaluation for real: the embedded model and a tiny one, through Unsloth and TRL."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import whole_recipe
import yaml

from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.training import arguments

CANARY = "### Solution\n1. The heron counts 317 violet umbrellas.\n### Final Answer\n\\boxed{317}"


@pytest.fixture(scope="module", autouse=True)
def unsloth():
    from tunebook.models import backend

    assert backend.backend() == "cpu"


@pytest.fixture
def canary_recipe(tmp_path) -> Path:
    """The default recipe on four copies of one odd conversation.

    And on other questions, so that it must read the prompt.
    """
    rows = [{"prompt": "How many umbrellas are there?", "completion": CANARY, "answer": "317"}]
    rows += [
        {"prompt": f"What is {n} + 1?", "completion": f"\\boxed{{{n + 1}}}", "answer": str(n + 1)}
        for n in (4, 40, 12)
    ]
    data = tmp_path / "canary.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = whole_recipe.content("smollm2-math")
    content |= {"name": "canary"}
    content["data"]["for_pairs"] = 0
    content["data"]["sources"] = [{"format": "chat", "path": str(data), "split": "train"}]
    content["sft"] |= {
        "per_device_train_batch_size": 4,
        "max_steps": 25,
        "learning_rate": 5e-3,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    path = tmp_path / "canary.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def losses(run_dir: Path) -> list[tuple[int, float]]:
    from tunebook.runs.files import log_history

    return [(e["step"], float(e["loss"])) for e in log_history(run_dir / "sft") if "loss" in e]


@pytest.mark.parametrize("four_bit", [False, True], ids=["lora", "qlora"])
def test_a_canary_is_learned_and_decoded_exactly(canary_recipe, four_bit, embedded):
    from tunebook.data.storage import load
    from tunebook.evaluation import evaluate
    from tunebook.models import adapters, loading
    from tunebook.training.sft import sft

    recipe = load_recipe(canary_recipe, overrides={"model.load_in_4bit": four_bit})
    record = sft(recipe)
    trace = losses(recipe.run_dir)
    assert trace[-1][1] < 0.05 < 1 < trace[0][1]
    assert 0.2 < record["audit"]["trained_share"] < 0.8
    adapter = recipe.run_dir / "sft" / "adapter"
    assert (adapter / "adapter_model.safetensors").exists() and (adapter / "tokenizer.json").exists()
    assert not [p for p in (recipe.run_dir / "sft").rglob("*") if p.suffix in (".bin", ".pkl")]
    rows = load(recipe, "train")
    model, tokenizer = adapters.load_stages(recipe, ["sft"])
    # For inference in the model's own precision, over weights in 4 bit too.
    weights = dict(model.named_parameters())
    assert {weights[name].dtype for name in weights if "lora_" in name} == {model.dtype}
    models = {"base": None, "sft": "sft"}
    answer = evaluate.answers(model, tokenizer, models, [rows[0]], 64)[0]
    assert answer["sft"] == CANARY
    assert answer["base"] != CANARY
    if four_bit:
        model, _ = loading.load_model(recipe)
        assert any(type(m).__name__ == "Linear4bit" for m in model.modules())


def test_every_token_trained_or_none_is_refused(tiny_recipe, tiny):
    from transformers import AutoTokenizer

    from tunebook.training import audits
    from tunebook.training.sft import sft

    with pytest.raises(UserError, match="every token carries loss"):
        sft(load_recipe(tiny_recipe, overrides={"sft.completion_only_loss": False}))
    import datasets
    import torch

    ids = torch.tensor([[5, 6, 7]])
    batch = {"input_ids": ids, "labels": torch.full_like(ids, -100), "attention_mask": torch.ones_like(ids)}
    stand_in = SimpleNamespace(
        train_dataset=datasets.Dataset.from_dict({"input_ids": [[5, 6, 7]]}), data_collator=lambda rows: batch
    )
    with pytest.raises(UserError, match="no token carries loss"):
        audits.audit_masks(stand_in, AutoTokenizer.from_pretrained(tiny))
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    unpadded = DataCollatorForLanguageModeling(
        pad_token_id=0, padding_free=True
    )  # as Unsloth sets it on a GPU
    for trained, share in (([-100, -100, 7], 1 / 2), ([5, 6, 7], 1)):
        rows = datasets.Dataset.from_dict({"input_ids": [[5, 6, 7]] * 2, "labels": [trained] * 2})
        stand_in = SimpleNamespace(train_dataset=rows, data_collator=unpadded)
        with pytest.raises(UserError, match="every token") if share == 1 else contextlib.nullcontext():
            assert audits.audit_masks(stand_in, AutoTokenizer.from_pretrained(tiny)) == {
                "rows": 2,
                "trained_share": share,
            }


def test_the_same_seed_gives_the_same_trace_and_another_does_not(tiny_recipe):
    from tunebook.training.sft import sft

    traces = []
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = load_recipe(tiny_recipe, run=run, stage="sft", seed=seed, max_steps=12)
        record = sft(recipe)
        traces.append(losses(recipe.run_dir))
        assert len(traces[-1]) == 12 == record["metrics"]["steps"]
    assert traces[0] == traces[1] != traces[2]
    started = json.loads((recipe.run_dir / "sft" / "stage.json").read_text())["started"]
    assert sft(recipe)["started"] == started  # unchanged: not run again


def test_early_stopping_and_the_best_checkpoint(tiny_recipe):
    from tunebook.training.sft import sft

    with pytest.raises(UserError, match=r"needs sft\.load_best_model_at_end"):
        sft(load_recipe(tiny_recipe, overrides={"sft.early_stopping_patience": 1}))
    keys = {
        "early_stopping_patience": 1,
        "load_best_model_at_end": True,
        "eval_steps": 5,
        "learning_rate": 1.0,
        "max_grad_norm": 1e9,
    }
    recipe = load_recipe(tiny_recipe, run="best", overrides={f"sft.{k}": v for k, v in keys.items()})
    metrics = sft(recipe)["metrics"]
    assert metrics["steps"] < 40
    assert (
        metrics["best_checkpoint"] == f"checkpoint-{metrics['steps'] - 5}"
    )  # patience 1: the one before the last


def test_early_stopping_keeps_its_patience_when_training_goes_on(tiny_recipe, monkeypatch):
    from transformers import TrainerCallback

    pass
    from tunebook.training.sft import sft

    keys = {
        "early_stopping_patience": 2,
        "load_best_model_at_end": True,
        "eval_steps": 5,
        "learning_rate": 1.0,
        "max_grad_norm": 1e9,
    }
    whole, cut = (
        load_recipe(tiny_recipe, run=run, overrides={f"sft.{k}": v for k, v in keys.items()})
        for run in ("whole", "cut")
    )
    undisturbed = sft(whole)["metrics"]

    class Cut(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if (
                state.global_step == undisturbed["steps"] - 4
            ):  # one of two bad evaluations lies behind it, and a checkpoint
                raise RuntimeError("cut")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="cut"):
        patched.setattr(arguments, "metrics_file", lambda path: Cut())
        sft(cut)
    resumed = sft(cut)["metrics"]
    assert {k: resumed[k] for k in ("steps", "best_checkpoint")} == {
        k: undisturbed[k] for k in ("steps", "best_checkpoint")
    }
    assert (
        resumed["train_loss"] == pytest.approx(undisturbed["train_loss"], rel=1e-4)
        and resumed["resumed_at_step"] > 0
    )


def test_training_goes_on_with_other_logging_and_another_split_of_the_batch(tiny_recipe, monkeypatch, capsys):
    """The checkpoint's losses go on as those of a run that had the new settings from the start."""
    from transformers import TrainerCallback

    from tunebook.training.sft import sft

    before = {"max_steps": 12, "eval_strategy": "no", "logging_steps": 5}
    before |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    after = before | {"logging_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}

    def recipe(run: str, keys: dict):
        return load_recipe(tiny_recipe, run=run, overrides={f"sft.{key}": keys[key] for key in keys})

    class Cut(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 7:
                raise RuntimeError("cut")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="cut"):
        patched.setattr(arguments, "metrics_file", lambda path: Cut())
        sft(recipe("cut", before))
    with pytest.raises(UserError, match=r"up to checkpoint-5, .*sft\.learning_rate .* --fresh"):
        sft(recipe("cut", before | {"learning_rate": 1e-3}))
    capsys.readouterr()
    record = sft(recipe("cut", after))
    assert "sft.logging_steps 5 -> 1" in capsys.readouterr().out
    assert record["metrics"]["resumed_at_step"] == 5
    sft(recipe("whole", after))
    whole = dict(losses(recipe("whole", after).run_dir))
    resumed = dict(losses(recipe("cut", after).run_dir))
    for step in range(6, 13):
        assert resumed[step] == pytest.approx(whole[step], rel=1e-4)


def test_a_plateau_schedule_trains_and_without_val_rows_says_what_it_needs(tiny_recipe):
    from tunebook.training.sft import sft

    keys = {"sft.lr_scheduler_type": "reduce_lr_on_plateau", "sft.max_steps": 4, "sft.eval_steps": 2}
    recipe = load_recipe(tiny_recipe, run="plateau", overrides=keys)
    assert sft(recipe)["metrics"]["optimizer_learning_rate"] == 5e-3
    assert (recipe.run_dir / "sft" / "adapter" / "adapter_model.safetensors").exists()
    none = {"sft.max_steps": 2, "data.sources.0.val": 0}
    with pytest.raises(
        UserError, match=r"no val rows to evaluate on, and sft\.lr_scheduler_type cannot do without"
    ):
        sft(load_recipe(tiny_recipe, run="none", overrides=keys | none))
    metrics = sft(load_recipe(tiny_recipe, run="none", overrides=none))["metrics"]
    assert (metrics["steps"], metrics["eval_loss"]) == (2, None)


def test_evaluation_goes_on_where_it_was_cut(tiny_recipe):
    from tunebook.data.prepare import prepare
    from tunebook.evaluation import evaluate
    from tunebook.generation.generate import read_records

    recipe = load_recipe(tiny_recipe)
    prepare(recipe)
    with pytest.raises(UserError, match="run `uv run tunebook sft"):
        evaluate.evaluate(recipe, ["sft"])
    results = evaluate.evaluate(recipe)
    assert list(results) == ["base"]
    assert results["base"]["n"] == 24
    assert sum(s["n"] for s in results["base"]["slices"].values()) == 24
    folder = recipe.run_dir / "eval" / "base"
    whole = read_records(folder / "predictions.jsonl")
    assert [p["index"] for p in whole] == list(range(24))
    assert all(p["truncated"] and p["tokens"] == 24 for p in whole if p["how"] == "none")
    stage = evaluate.eval_stage(recipe, "base")
    cut = folder.with_name(".base.partial")
    cut.mkdir()
    (cut / "started.json").write_text(json.dumps({"key": stage.key}))
    lines = (folder / "predictions.jsonl").read_text().splitlines(keepends=True)
    marked = [
        line.replace('"answer": "', '"answer": "KEPT ', 1) for line in lines[:8]
    ]  # the first batch of 8
    (cut / "predictions.jsonl").write_text("".join(marked) + lines[8][:30])
    (folder / "stage.json").unlink()
    evaluate.evaluate(recipe)
    again = read_records(folder / "predictions.jsonl")
    assert sum(p["answer"].startswith("KEPT ") for p in again) == 8
    assert [p["answer"].removeprefix("KEPT ") for p in again] == [p["answer"] for p in whole]
