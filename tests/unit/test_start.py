"""What DPO starts from: SFT, the base model, or an adapter that was trained elsewhere."""

from __future__ import annotations

import json

import pytest

from tunebook.data.prepare import prepare
from tunebook.models.start import start, start_stage, with_shape_of
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.runs.stages import model_names, next_command, policy_name, steps

SHAPE = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 12,
    "use_rslora": True,
    "target_modules": ["v_proj", "q_proj"],
}


def write_adapter(folder, weights="adapter_model.safetensors", **config):
    folder.mkdir(exist_ok=True)
    content = {**SHAPE, "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    (folder / weights).write_bytes(b"weights")
    return folder


def recipe_of(folder, dpo="dpo:\n", sft=""):
    (folder / "p.jsonl").write_text("{}\n")
    path = folder / "mine.yaml"
    path.write_text(f"extends: smollm2\npairs: {{dataset: p.jsonl}}\n{sft}{dpo}")
    return load_recipe(path)


def test_dpo_starts_from_sft_where_the_recipe_asks_for_it_else_from_the_base(tmp_path):
    assert policy_name(recipe_of(tmp_path), 1) == "base"
    data = "data: {sources: [{path: my.csv}]}\nsft:\n"
    assert policy_name(recipe_of(tmp_path, sft=data), 1) == "sft"
    assert policy_name(recipe_of(tmp_path, "dpo: {start: base}\n", data), 1) == "base"
    adapter = recipe_of(tmp_path, "dpo: {start: my-adapter}\n")
    assert [policy_name(adapter, number) for number in (1, 2)] == ["start", "dpo"]
    assert model_names(adapter) == ["base", "start", "dpo"]
    # It is copied by whoever needs it, and is no step and no command of its own.
    assert list(steps(adapter)) == ["pairs", "dpo", "evaluate"]
    assert next_command(adapter, "pairs").startswith("uv run tunebook dpo")


def test_an_adapter_is_copied_with_its_hash_as_the_key(tmp_path, capsys):
    folder = write_adapter(tmp_path / "tuned")
    recipe = recipe_of(tmp_path, "dpo: {start: tuned}\n")
    start(recipe)
    copied = recipe.run_dir / "start" / "adapter"
    assert (copied / "adapter_model.safetensors").read_bytes() == b"weights"
    record = json.loads((recipe.run_dir / "start" / "stage.json").read_text())
    assert record["source"] == "tuned" and record["trained_on"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert start_stage(recipe).done
    (folder / "adapter_model.safetensors").write_bytes(b"others")
    assert not start_stage(recipe).done
    start(recipe)
    assert (copied / "adapter_model.safetensors").read_bytes() == b"others"
    capsys.readouterr()
    write_adapter(tmp_path / "tuned", base_model_name_or_path="Qwen/Qwen3-4B")
    start(recipe)
    assert "dpo.start was trained on Qwen/Qwen3-4B, model.base is smollm2" in capsys.readouterr().out


def test_what_is_no_adapter_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"dpo\.start: .*empty holds no adapter_config\.json; of a whole model"
    ):
        start(recipe_of(tmp_path, "dpo: {start: empty}\n"))
    write_adapter(tmp_path / "pickled", weights="adapter_model.bin")
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors.*pickled weights are not read"):
        start(recipe_of(tmp_path, "dpo: {start: pickled}\n"))
    write_adapter(tmp_path / "prompted", peft_type="PROMPT_TUNING")
    with pytest.raises(UserError, match="is no LoRA adapter"):
        start(recipe_of(tmp_path, "dpo: {start: prompted}\n"))

    def offline(*args, **options):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        UserError, match=r"'no/where' is neither `sft` nor `base`, no folder here and no hub id"
    ):
        start(recipe_of(tmp_path, "dpo: {start: no/where}\n"))


def test_the_adapter_in_a_runs_folder_is_taken_or_named(tmp_path):
    for stage in ("sft", "dpo"):
        (tmp_path / "elsewhere" / stage).mkdir(parents=True)
        write_adapter(tmp_path / "elsewhere" / stage / "adapter")
    of_a_stage = recipe_of(tmp_path, "dpo: {start: elsewhere/sft}\n")
    assert "adapter_config.json" in start_stage(of_a_stage).inputs
    with pytest.raises(
        UserError, match=r"elsewhere is a run .*: name .*elsewhere/dpo/adapter or .*elsewhere/sft"
    ):
        start_stage(recipe_of(tmp_path, "dpo: {start: elsewhere}\n"))


def test_rows_are_not_prepared_for_a_recipe_of_dpo_alone(tmp_path):
    recipe = recipe_of(tmp_path)
    with pytest.raises(UserError, match=r"^the recipe mine has no data\.sources; it asks for pairs and dpo$"):
        prepare(recipe)
    assert not recipe.run_dir.exists()


def test_its_shape_wins_over_the_recipes_lora_section(tmp_path, capsys):
    recipe = recipe_of(tmp_path, "dpo: {start: tuned}\nlora: {lora_dropout: 0.0}\n")
    shaped = with_shape_of(recipe, write_adapter(tmp_path / "tuned"))
    assert shaped.lora["r"] == 4 and shaped.lora["lora_alpha"] == 12 and shaped.lora["use_rslora"]
    assert sorted(shaped.lora["target_modules"]) == ["q_proj", "v_proj"]
    assert "modules_to_save" not in shaped.lora and shaped.lora["lora_dropout"] == 0
    assert "r 4, not 16" in capsys.readouterr().out
    assert recipe.lora["r"] == 16


@pytest.mark.parametrize(
    ("key", "value"),
    [("bias", "all"), ("trainable_token_indices", [5]), ("init_lora_weights", "pissa"), ("lora_bias", True)],
)
def test_an_adapter_of_a_kind_that_would_be_built_otherwise_is_refused(tmp_path, key, value):
    write_adapter(tmp_path / "tuned", **{key: value})
    with pytest.raises(UserError, match=rf"was trained with {key}=.*name that folder as model\.base"):
        start(recipe_of(tmp_path, "dpo: {start: tuned}\n"))
    write_adapter(tmp_path / "tuned", bias="none", init_lora_weights=True, exclude_modules=None)
    start(recipe_of(tmp_path, "dpo: {start: tuned}\n"))


def test_a_whole_model_of_the_hub_gets_the_same_advice(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("tunebook.models.hub.use_if_reachable", lambda: None)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"holds no adapter_config\.json.*`model\.base: some/model`"):
        start(recipe_of(tmp_path, "dpo: {start: some/model}\n"))


def test_to_start_from_sft_needs_rows_for_it(tmp_path):
    with pytest.raises(UserError, match=r"dpo\.start: sft needs an SFT in this run"):
        recipe_of(tmp_path, "dpo: {start: sft}\n")


def test_the_folder_of_a_whole_model_becomes_the_base(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "config.json").write_text("{}")
    recipe = recipe_of(tmp_path, "dpo: {start: whole}\n")
    assert recipe.model.base == "whole" and policy_name(recipe, 1) == "base"
    assert recipe.model.local_base == str(tmp_path / "whole")
    with pytest.raises(UserError, match=r"dpo\.start: whole is a whole model, and SFT would train smollm2"):
        recipe_of(tmp_path, "dpo: {start: whole}\n", "data: {sources: [{path: my.csv}]}\nsft:\n")
