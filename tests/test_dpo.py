"""Preference pairs are right on both sides; DPO starts from its own reference, resumes, and leaves no `ref` behind."""

from __future__ import annotations

import json
import math

import datasets
import pytest

from tunebook.data.geometry import problems
from tunebook.pairs import build, check_sample, pairs_stage
from tunebook.recipe import PairsConfig, UserError, load_recipe
from tunebook.verify import verify

RIGHT = "### Solution\n1. 2 + 3 = 5\n### Final Answer\n\\boxed{5}"
WRONG = RIGHT.replace("5", "6")
POISON = {
    "": False,
    "Error: API call failed": False,
    "GENERATION_ERROR": False,
    "### Solution\n1. 2 + 3 = 6\n### Final Answer\n6": False,  # no box
    "### Solution\n1. 2 + 3 = 6\n### Final Answer\n\\boxed{}": False,
    "the answer is \\boxed{6}": False,  # not the format of chosen
    WRONG: True,  # cut off
}


def sample(text: str, truncated: bool = False, tokens: int = 20, gold: str = "5") -> dict:
    return {"text": text, "tokens": tokens, "truncated": truncated, **check_sample(text, gold, truncated)}


ROW = {
    "source_id": "row/1",
    "gold": "5",
    "prompt": [{"role": "user", "content": "2 + 3?"}],
    "completion": [{"role": "assistant", "content": RIGHT}],
}


@pytest.mark.parametrize(("text", "truncated"), POISON.items())
def test_a_poisoned_sample_is_on_neither_side(text, truncated):
    config = PairsConfig(samples=2)
    assert build(config, [ROW], [sample(RIGHT), sample(text, truncated)], 0) == []
    assert build(config, [ROW], [sample(text, truncated), sample(WRONG)], 0) == []
    if truncated:
        assert build(config, [ROW], [sample(RIGHT, True), sample(WRONG)], 0) == []


def test_always_right_or_always_wrong_gives_no_pair():
    config = PairsConfig(samples=2)
    assert build(config, [ROW], [sample(RIGHT), sample(RIGHT.replace("2 + 3", "3 + 2"))], 0) == []
    assert build(config, [ROW], [sample(WRONG), sample(RIGHT.replace("5", "7"))], 0) == []
    (pair,) = build(PairsConfig(samples=2, reference_chosen=True), [ROW], [sample(WRONG), sample(WRONG)], 0)
    assert (pair["strategy"], pair["chosen"][0]["content"]) == ("reference", RIGHT)


def test_length_ratio_and_pairs_a_prompt():
    own = [sample(RIGHT), sample(RIGHT.replace("1. ", "1. So ")), sample(WRONG), sample(RIGHT.replace("5", "7"), tokens=90)]
    config = PairsConfig(samples=4, max_length_ratio=2.0)
    (pair,) = build(config, [ROW], own, 0)
    assert pair["rejected"][0]["content"] == WRONG
    assert len(build(config.model_copy(update={"max_length_ratio": 9.0}), [ROW], own, 0)) == 1
    two = build(config.model_copy(update={"max_length_ratio": 9.0, "per_prompt": 2}), [ROW], own, 0)
    assert len({p["chosen"][0]["content"] for p in two}) == len({p["rejected"][0]["content"] for p in two}) == len(two) == 2


def test_every_pair_verifies_again_from_its_own_columns():
    rows, samples = [], []
    for p in problems("train", 200):
        rows.append(ROW | {"source_id": p.id, "gold": p.answer, "completion": [{"role": "assistant", "content": p.solution}]})
        wrong = p.solution.replace(f"boxed{{{p.answer}}}", "boxed{1234}")
        samples += [sample(t, gold=p.answer) for t in (p.solution, wrong)]
    found = build(PairsConfig(samples=2), rows, samples, 0)
    assert len(found) == 200
    for pair in found:
        assert verify(pair["chosen"][0]["content"], pair["gold"], boxed_only=True).correct is pair["chosen_correct"] is True
        assert verify(pair["rejected"][0]["content"], pair["gold"], boxed_only=True).correct is pair["rejected_correct"] is False


@pytest.fixture
def paired(tiny_recipe):
    """A function that makes the tiny recipe with SFT done and pairs made of given samples: the solution, and it with a wrong box."""
    from tunebook import models
    from tunebook.data.prepare import load
    from tunebook.pairs import pairs
    from tunebook.sft import sft

    def make(run: str):
        models.backend()
        keys = {
            "sft.max_steps": 4,
            "sft.eval_strategy": "no",
            "pairs.samples": 2,
            "dpo.learning_rate": 5e-3,
            "dpo.save_steps": 5,
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
                lines.append({"index": len(lines), "text": text, "tokens": 30, "truncated": False, **check_sample(text, row["gold"], False)})
        (stage.partial / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        record = pairs(recipe)
        assert sum(record["rows"].values()) == len(lines) // 2
        assert record["pass_counts"] == {"0": 0, "1": len(lines) // 2, "2": 0}
        return recipe

    return make


@pytest.mark.slow
def test_dpo_learns_from_its_own_reference_and_resumes(paired, monkeypatch):
    from safetensors.torch import load_file
    from transformers import TrainerCallback

    from tunebook import evaluate, train
    from tunebook.dpo import dpo
    from tunebook.train import log_history

    straight = paired("straight")
    record = dpo(straight)
    assert record["audit"]["loss"] == pytest.approx(math.log(2), abs=0.01)
    history = [e for e in log_history(straight.run_dir / "dpo") if "rewards/margins" in e]
    assert float(history[-1]["rewards/margins"]) > 0.05 > abs(float(history[0]["rewards/margins"]))
    assert not (straight.run_dir / "dpo" / "adapter" / "ref").exists()
    before, after = (load_file(straight.run_dir / s / "adapter" / "adapter_model.safetensors") for s in ("sft", "dpo"))
    assert set(before) == set(after)
    assert any(not before[k].equal(after[k]) for k in before)

    stopped = paired("stopped")
    arguments = train.arguments

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7:
                raise KeyboardInterrupt

    monkeypatch.setattr(train, "arguments", lambda *a: (lambda r: (r[0], [*r[1], Stop()]))(arguments(*a)))
    with pytest.raises(KeyboardInterrupt):
        dpo(stopped)
    monkeypatch.setattr(train, "arguments", arguments)
    dpo(stopped)
    again = load_file(stopped.run_dir / "dpo" / "adapter" / "adapter_model.safetensors")
    assert all(after[k].sub(again[k]).abs().max() < 1e-5 for k in after)
    results = evaluate.evaluate(stopped)
    assert list(results) == ["base", "sft", "dpo"]


@pytest.mark.slow
def test_a_wrong_reference_is_noticed_before_the_first_step(paired, monkeypatch):
    from tunebook import dpo

    recipe, real = paired("wrong"), dpo.audit_step_0

    def with_another_reference(trainer):
        for name, parameter in trainer.model.named_parameters():
            if ".ref." in name and "lora_B" in name:
                parameter.data += 0.2
        return real(trainer)

    monkeypatch.setattr(dpo, "audit_step_0", with_another_reference)
    with pytest.raises(UserError, match="the reference is not the model that training starts from"):
        dpo.dpo(recipe)
    assert not (recipe.run_dir / "dpo").exists()


@pytest.mark.slow
def test_a_missing_stage_names_its_command(tiny_recipe):
    from tunebook.dpo import dpo

    with pytest.raises(UserError, match="run `tunebook pairs"):
        dpo(load_recipe(tiny_recipe))


@pytest.mark.slow
def test_a_seeded_sample_does_not_depend_on_its_batch(tiny_recipe):
    from tunebook import models
    from tunebook.generate import generate

    recipe = load_recipe(tiny_recipe)
    model, tokenizer = models.load(recipe)
    prompts = [[{"role": "user", "content": "word " * n}] for n in (1, 4, 9, 2, 9)]
    with models.use_adapter(model, None) as active:
        runs = [
            {
                i: a.text
                for b in generate(active, tokenizer, prompts, max_new_tokens=12, batch_size=n, temperature=1.0, seeds=seeds)
                for i, a in b.items()
            }
            for n, seeds in ((5, [1, 2, 3, 4, 5]), (1, [1, 2, 3, 4, 5]), (5, [1, 2, 3, 4, 6]))
        ]
    assert runs[0] == runs[1]
    assert {k: v for k, v in runs[0].items() if k != 4} == {k: v for k, v in runs[2].items() if k != 4}
    assert runs[0][4] != runs[2][4]
    assert runs[0][2] != runs[0][4]  # the same prompt, another seed


def test_written_pairs_are_what_trl_wants(tmp_path):
    from tunebook.pairs import _write

    (pair,) = build(PairsConfig(samples=2), [ROW], [sample(RIGHT), sample(WRONG)], 0)
    _write([pair], tmp_path / "p.parquet")
    (row,) = datasets.Dataset.from_parquet(str(tmp_path / "p.parquet"))
    assert row["prompt"] == ROW["prompt"] and row["chosen"][0]["role"] == "assistant"
    assert {"source_id", "strategy", "gold", "chosen_correct", "rejected_correct", "chosen_tokens", "rejected_tokens"} <= set(row)


@pytest.mark.slow
def test_the_pipeline_skips_what_is_done_and_stops_at_the_first_failure(paired, tiny_recipe, capsys):
    """With finished data, SFT and pairs: DPO's and the evaluation's notebooks run, then nothing does, then one fails."""
    from tunebook import pipeline
    from tunebook.run import read_json

    recipe = paired("chain")
    plan = pipeline.run(recipe, str(tiny_recipe), dry_run=True)
    assert plan == ["dpo", "evaluate"]
    assert not (recipe.run_dir / "notebooks").exists()
    assert pipeline.run(recipe, str(tiny_recipe)) == plan
    assert sorted(p.stem for p in (recipe.run_dir / "notebooks").iterdir()) == ["04_dpo", "05_evaluate"]
    assert list(read_json(recipe.run_dir / "eval" / "summary.json")["stages"]) == ["base", "sft", "dpo"]
    capsys.readouterr()
    assert pipeline.run(recipe, str(tiny_recipe)) == []
    assert capsys.readouterr().out.count("up to date") == 5
    changed = load_recipe(
        tiny_recipe, run="chain", overrides={k: v for k, (_, v) in recipe.overrides.items()} | {"dpo.loss_type": ["nonsense", "sft"]}
    )
    with pytest.raises(UserError, match=r"04_dpo\.ipynb, cell \d+: .*nonsense"):
        pipeline.run(changed, str(tiny_recipe))
    assert (recipe.run_dir / "dpo" / "adapter").exists()
    with pytest.raises(UserError, match="no step 'dop'"):
        pipeline.run(recipe, str(tiny_recipe), first="dop")
