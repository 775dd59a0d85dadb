"""DPO starts from its own reference, warns, and leaves no `ref` behind."""

from __future__ import annotations

import functools
import math

import pytest
from dpo_run import log, paired_run

from tunebook.pairs.pairs import pairs_stage
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.training.callbacks import WINDOW, watch_preferences
from tunebook.training.dpo import first_steps


def test_only_the_line_in_which_the_sides_part_is_compared(embedded):
    """On tokenised rows as TRL's trainer holds them; what is shared joins the prompt."""
    from types import SimpleNamespace

    import datasets
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(embedded)
    head, tail = "### Solution\n1. 8 * 8 = 64\n2. 64 + 36 = 90 + ", "### Final Answer\n\\boxed{{{}}}"
    texts = {
        "prompt": "Find the area.",
        "chosen": f"{head}10 = 100\n{tail.format(100)}",
        "rejected": f"{head}8 = 98\n{tail.format(98)}",
    }
    rows = [texts, texts | {"chosen": "1\n2", "rejected": "1\n3 or so"}]
    ids = datasets.Dataset.from_list(
        [{f"{k}_ids": tok(v)["input_ids"] for k, v in row.items()} for row in rows]
    )
    trainer = SimpleNamespace(train_dataset=ids, eval_dataset=None)
    first_steps(trainer, tok)
    seen = [{k: tok.decode(v) for k, v in row.items()} for row in trainer.train_dataset]
    assert seen[0] == {
        "prompt_ids": f"Find the area.{head}",
        "chosen_ids": "10 = 100\n",
        "rejected_ids": "8 = 98\n",
    }
    assert seen[1] == {"prompt_ids": "Find the area.1\n", "chosen_ids": "2", "rejected_ids": "3 or so"}


def test_entries_without_a_loss_are_no_part_of_the_judgement(capsys):
    """The closing entry of a run has the rewards of its last steps and no loss."""
    from types import SimpleNamespace

    watching = watch_preferences(0.1)
    history = [log(i) for i in range(WINDOW)] + [log(i, rewards__chosen=-1.0) for i in range(WINDOW)]
    closing = {"rewards/chosen": 0.0, "rewards/accuracies": 0.5, "train_runtime": 1.0}
    for n in (WINDOW, 2 * WINDOW, 2 * WINDOW):
        watching.on_log(None, SimpleNamespace(log_history=[*history[:n], closing]), None)
    assert len(watching.warnings) == 1 and capsys.readouterr().out.count("Warning: logps/chosen falls") == 1


@pytest.fixture
def paired(tiny_recipe):
    """A function that makes such a run under a name."""
    return functools.partial(paired_run, tiny_recipe)


def test_dpo_learns_from_its_own_reference(paired, monkeypatch):
    from safetensors.torch import load_file

    from tunebook.evaluation import evaluate
    from tunebook.models import loading
    from tunebook.runs.files import log_history
    from tunebook.training.dpo import dpo

    straight = paired("straight")
    record = dpo(straight)
    assert record["audit"]["loss"] == pytest.approx(math.log(2), abs=0.01)
    history = [e for e in log_history(straight.run_dir / "dpo") if "rewards/margins" in e]
    assert float(history[-1]["rewards/margins"]) > 0.05 > abs(float(history[0]["rewards/margins"]))
    for entry in history[:5]:  # the sum that TRL trains on, and its parts before their weights
        parts = [entry[f"losses/{name}"] for name in straight.dpo["loss_type"]]
        weighted = [part * weight for part, weight in zip(parts, straight.dpo["loss_weights"], strict=True)]
        assert sum(weighted) == pytest.approx(float(entry["loss"]), rel=1e-3)
    assert history[0]["losses/sigmoid"] == pytest.approx(math.log(2), abs=0.01)
    assert not (straight.run_dir / "dpo" / "adapter" / "ref").exists()
    before, after = (
        load_file(straight.run_dir / s / "adapter" / "adapter_model.safetensors") for s in ("sft", "dpo")
    )
    assert set(before) == set(after)
    assert any(not before[k].equal(after[k]) for k in before)

    loaded, load = [], loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda recipe: loaded.append(recipe) or load(recipe))
    assert list(evaluate.evaluate(straight)) == ["base", "sft", "dpo"] and len(loaded) == 1


def test_a_wrong_reference_is_noticed_before_the_first_step(paired, monkeypatch):
    from tunebook.training import audits, dpo

    recipe, real = paired("wrong"), audits.audit_step_0

    def with_another_reference(trainer, tokenizer):
        for name, parameter in trainer.model.named_parameters():
            if ".ref." in name and "lora_B" in name:
                parameter.data += 0.2
        return real(trainer, tokenizer)

    monkeypatch.setattr(audits, "audit_step_0", with_another_reference)
    with pytest.raises(UserError, match="the reference is not the model that training starts from"):
        dpo.dpo(recipe)
    assert not (recipe.run_dir / "dpo").exists()


def test_steps_instead_of_answers_are_trained_on_too(paired, tiny_recipe):
    from tunebook.training.dpo import dpo, dpo_stage

    recipe = paired("steps")
    keys = {key: used for key, (_, used) in recipe.overrides.items() if key != "run"} | {
        "pairs.compare": "step",
        "dpo.use_weighting": True,
        "dpo.loss_type": ["sigmoid"],
        "dpo.loss_weights": [1.0],
        "dpo.eval_strategy": "epoch",
        "dpo.logging_steps": 3,
    }
    steps = load_recipe(tiny_recipe, run="steps", overrides=keys)
    assert pairs_stage(steps).done  # the same pairs, read in another way
    assert dpo_stage(steps).key != dpo_stage(recipe).key
    record = dpo(steps)
    assert record["audit"]["loss"] == pytest.approx(math.log(2), abs=0.01)
    assert record["metrics"]["steps"] == 40 and record["metrics"]["eval_loss"] is not None
    with pytest.raises(UserError, match=r"dpo\.use_weighting cannot weight the sft loss: set dpo\.loss_type"):
        dpo(
            load_recipe(
                tiny_recipe,
                run="steps",
                overrides=keys | {"dpo.loss_type": ["sigmoid", "sft"], "dpo.loss_weights": [1.0, 1.0]},
            )
        )


def test_rows_of_a_step_that_are_split_otherwise_give_the_same_losses(paired, tiny_recipe):
    """As people compare after running out of memory: trl#2175."""
    from tunebook.runs.files import log_history
    from tunebook.training.dpo import dpo

    recipe = paired("split")
    keys = {key: used for key, (_, used) in recipe.overrides.items() if key != "run"}
    keys |= {"dpo.max_steps": 4, "dpo.loss_type": ["sigmoid"], "dpo.loss_weights": [1.0]}
    traces = []
    for rows, steps in ((4, 1), (2, 2), (1, 4)):
        keys |= {"dpo.per_device_train_batch_size": rows, "dpo.gradient_accumulation_steps": steps}
        dpo(load_recipe(tiny_recipe, run="split", overrides=keys), force=True)
        traces.append([float(e["loss"]) for e in log_history(recipe.run_dir / "dpo") if "loss" in e])
    assert len(traces[0]) == 4 and traces[0][-1] < traces[0][0] - 1e-3
    assert traces[1] == pytest.approx(traces[0], abs=0.01)
    assert traces[2] == pytest.approx(traces[0], abs=0.01)


def test_a_missing_stage_names_its_command(tiny_recipe):
    from tunebook.training.dpo import dpo

    with pytest.raises(UserError, match="run `uv run tunebook pairs"):
        dpo(load_recipe(tiny_recipe))
