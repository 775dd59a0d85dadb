"""`tunebook sft --continue`: a finished adapter is trained further, and stays until the new one is whole."""

from __future__ import annotations

import pytest

from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import file_hash, log_history, read_json
from tunebook.training import arguments
from tunebook.training.sft import sft, sft_stage


def test_a_finished_adapter_is_trained_further(tiny_recipe, monkeypatch, capsys):
    from transformers import TrainerCallback

    class Cut(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise RuntimeError("cut")

    keys = {"sft.max_steps": 20, "sft.eval_strategy": "no", "sft.warmup_steps": 0}

    def recipe(**changes):
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        return load_recipe(tiny_recipe, overrides=keys | changed)

    def losses():
        return [float(entry["loss"]) for entry in log_history(folder) if "loss" in entry]

    with pytest.raises(UserError, match=r"holds no finished result: run `uv run tunebook sft"):
        sft(recipe(), go_on=True)
    first = sft(recipe())
    folder = recipe().run_dir / "sft"
    weights = folder / "adapter" / "adapter_model.safetensors"
    begun, at_first = losses(), file_hash(weights)

    # 1) cut in the middle: the finished adapter lies where it lay, and the same call goes on
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="cut"):
        patched.setattr(arguments, "metrics_file", lambda path: Cut())
        sft(recipe(sft__max_steps=8), go_on=True)
    assert file_hash(weights) == at_first and read_json(folder / "stage.json")["key"] == first["key"]
    with pytest.raises(UserError, match=r"an unfinished sft is there.*continued_from"):
        sft(recipe(sft__max_steps=8))
    capsys.readouterr()
    second = sft(recipe(sft__max_steps=8), go_on=True)
    output = capsys.readouterr().out
    assert f"Continues {folder / 'adapter'}, trained for 20 steps." in output
    assert second["metrics"]["resumed_at_step"] == 5 and second["metrics"]["steps"] == 8
    # It began where the first has ended, and not at the base model.
    assert begun[0] > 11 > 10 > losses()[0] == pytest.approx(begun[-1], rel=0.1)
    assert file_hash(weights) != at_first

    # 2) what is recorded, in the manifest too
    before = second["continued_from"]
    assert before["key"] == first["key"] and before["steps"] == 20 and before["settings"] == first["settings"]
    assert second["settings"]["continued_from"]
    manifest = read_json(folder.parent / "manifest.json")["stages"]["sft"]
    assert manifest["continued_from"] == before

    # 3) up to date with and without --continue, until something changes
    assert sft(recipe(sft__max_steps=8))["ended"] == second["ended"]
    assert sft(recipe(sft__max_steps=8), go_on=True)["ended"] == second["ended"]
    assert "--continue --force does so once more" in capsys.readouterr().out
    assert not sft_stage(recipe()).done

    # 4) other rows
    third = sft(recipe(sft__max_steps=2, **{"data__sources__0__train": 60}), go_on=True)
    assert third["continued_from"]["steps"] == 28 and third["rows"]["train"] != second["rows"]["train"]
    assert len(third["learnt"]) == 2 and set(second["learnt"]) < set(third["learnt"])
    assert "`tunebook evaluate` will refuse it" in capsys.readouterr().out
    with pytest.raises(UserError, match="does not fit the recipe's lora section"):
        sft(recipe(sft__max_steps=2, lora__r=4), go_on=True)
