"""DPO starts from its own reference, warns, and leaves no `ref` behind."""

from __future__ import annotations

import json
import math
import re

import pytest

from tunebook.pairs.pair import check_sample
from tunebook.pairs.pairs import pairs_stage
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.training.callbacks import WINDOW, unhealthy, watch_preferences
from tunebook.training.dpo import first_steps


def log(step: int, **kwargs: float) -> dict:
    return {"step": step, "loss": 0.7, "rewards/chosen": 0.0, "rewards/accuracies": 0.6} | {
        k.replace("__", "/"): v for k, v in kwargs.items()
    }


def test_what_goes_wrong_is_named_with_its_mend():
    healthy = [log(i) for i in range(4 * WINDOW)]
    assert unhealthy(healthy, 0.1) == []
    assert (
        unhealthy([log(i, rewards__chosen=-9.0) for i in range(WINDOW - 1)], 0.1) == []
    )  # too early to tell
    (falls,) = unhealthy([*healthy, *(log(i, rewards__chosen=-0.3) for i in range(WINDOW))], 0.1)
    assert (
        falls.startswith("logps/chosen falls")
        and "dpo.learning_rate" in falls
        and "dpo.loss_weights" in falls
    )
    assert (
        unhealthy([*healthy, *(log(i, rewards__chosen=-0.3) for i in range(WINDOW))], 1.0) == []
    )  # a third of a nat
    (rises,) = unhealthy([*healthy, *(log(i, loss=0.9) for i in range(WINDOW))], 0.1)
    assert rises.startswith("the loss rises")
    (idle,) = unhealthy([log(i, rewards__accuracies=0.4) for i in range(4 * WINDOW)], 0.1)
    assert idle.startswith("rewards/accuracies stay")


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
    """A function that makes the tiny recipe with SFT done and pairs made of given samples: the solution, and it with a wrong box."""
    from tunebook.data.storage import load
    from tunebook.models import backend
    from tunebook.pairs.pairs import pairs
    from tunebook.training.sft import sft

    def make(run: str):
        backend.backend()
        keys = {
            "sft.max_steps": 4,
            "sft.eval_strategy": "no",
            "pairs.samples": 2,
            "dpo.learning_rate": 5e-3,
            "dpo.save_steps": 5,
            "dpo.max_steps": 40,
            "dpo.logging_steps": 1,
        }
        recipe = load_recipe(tiny_recipe, run=run, overrides=keys)
        sft(recipe)
        stage = pairs_stage(recipe)
        stage.partial.mkdir(parents=True)
        (stage.partial / "started.json").write_text(json.dumps({"key": stage.key}))
        lines = []
        for row in load(recipe, "train"):
            right = row["completion"][0]["content"]
            for text in (right, right.replace(f"boxed{{{row['gold']}}}", "boxed{1234}")):
                lines.append(
                    {
                        "index": len(lines),
                        "text": text,
                        "tokens": 30,
                        "truncated": False,
                        "seed": 0,
                        "verdict": check_sample(text, row["gold"], False, right),
                    }
                )
        (stage.partial / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        record = pairs(recipe)
        assert sum(record["rows"].values()) == len(lines) // 2
        assert record["pass_counts"] == {"0": 0, "1": len(lines) // 2, "2": 0}
        return recipe

    return make


@pytest.mark.slow
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
    assert not (straight.run_dir / "dpo" / "adapter" / "ref").exists()
    before, after = (
        load_file(straight.run_dir / s / "adapter" / "adapter_model.safetensors") for s in ("sft", "dpo")
    )
    assert set(before) == set(after)
    assert any(not before[k].equal(after[k]) for k in before)

    loaded, load = [], loading.load
    monkeypatch.setattr(loading, "load", lambda recipe: loaded.append(recipe) or load(recipe))
    assert list(evaluate.evaluate(straight)) == ["base", "sft", "dpo"] and len(loaded) == 1


@pytest.mark.slow
def test_a_wrong_reference_is_noticed_before_the_first_step(paired, monkeypatch):
    from tunebook.training import audits, dpo

    recipe, real = paired("wrong"), audits.audit_step_0

    def with_another_reference(trainer):
        for name, parameter in trainer.model.named_parameters():
            if ".ref." in name and "lora_B" in name:
                parameter.data += 0.2
        return real(trainer)

    monkeypatch.setattr(audits, "audit_step_0", with_another_reference)
    with pytest.raises(UserError, match="the reference is not the model that training starts from"):
        dpo.dpo(recipe)
    assert not (recipe.run_dir / "dpo").exists()


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_missing_stage_names_its_command(tiny_recipe):
    from tunebook.training.dpo import dpo

    with pytest.raises(UserError, match="run `uv run tunebook pairs"):
        dpo(load_recipe(tiny_recipe))


@pytest.mark.slow
def test_the_pipeline_skips_what_is_done_and_stops_at_the_first_failure(paired, tiny_recipe, capsys):
    """With finished data, SFT and pairs: DPO's and the evaluation's notebooks run, then nothing does, then one fails."""
    from tunebook import pipeline
    from tunebook.runs.files import read_json

    recipe = paired("chain")
    plan = pipeline.run(recipe, str(tiny_recipe), dry_run=True)
    assert plan == ["dpo", "evaluate"]
    assert not (recipe.run_dir / "notebooks").exists()
    assert pipeline.run(recipe, str(tiny_recipe)) == plan
    assert sorted(p.stem for p in (recipe.run_dir / "notebooks").iterdir()) == ["04_dpo", "05_evaluate"]
    assert list(read_json(recipe.run_dir / "eval" / "summary.json")["stages"]) == ["base", "sft", "dpo"]
    assert re.search(
        r"^Minutes: dpo \d+\.\d \(\d+%\), evaluate \d+\.\d \(\d+%\), in all \d+\.\d$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert pipeline.run(recipe, str(tiny_recipe)) == []
    assert capsys.readouterr().out.count("up to date") == 5
    changed = load_recipe(
        tiny_recipe,
        run="chain",
        overrides={k: v for k, (_, v) in recipe.overrides.items()} | {"dpo.loss_type": ["nonsense", "sft"]},
    )
    with pytest.raises(UserError, match=r"04_dpo\.ipynb, cell \d+: .*nonsense"):
        pipeline.run(changed, str(tiny_recipe))
    assert (recipe.run_dir / "dpo" / "adapter").exists()
    with pytest.raises(UserError, match="no step 'dop'"):
        pipeline.run(recipe, str(tiny_recipe), first="dop")
