"""Exports of a trained adapter, compared in fresh processes; damaged ones are found out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import whole_recipe
import yaml

from tunebook.evaluation.tables import parity_table
from tunebook.export import comparing, export
from tunebook.export.modelcard import card
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import read_json

ALL = {
    "export.to": ["adapter", "merged", "gguf", "ollama"],
    "export.quantizations": ["f16", "q8_0"],
    "export.items": 6,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny) -> Path:
    """A runs folder in which a tiny model has learnt one answer by heart and was exported in every way."""
    folder = tmp_path_factory.mktemp("exported")
    answer = "### Solution\n1. Look: 3 + 4 = 7\n### Final Answer\n\\boxed{7}"
    rows = [
        {"prompt": f"How many umbrellas has room {n}?", "completion": answer, "answer": "7"}
        for n in range(48)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = whole_recipe.content("smollm2-math")
    content["name"] = "tiny"
    content["model"] |= {"base": str(tiny), "dtype": "float32"}
    content["data"]["for_pairs"] = 0
    content["data"] |= {
        "sources": [{"format": "chat", "path": str(folder / "rows.jsonl"), "val": 0.1, "test": 0.3}],
        "near_duplicate": 1.0,
    }
    content["sft"] |= {"max_steps": 150, "learning_rate": 2e-2, "eval_strategy": "no", "save_strategy": "no"}
    content["evaluate"] |= {"max_new_tokens": 48, "batch_size": 8}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEBOOK_RUNS", str(folder / "runs"))
        from tunebook.training.sft import sft

        recipe = load_recipe(folder / "tiny.yaml", overrides=ALL)
        sft(recipe)
        export.export(recipe, install_tools=True)
    return folder


@pytest.fixture
def recipe(exported, tmp_path, monkeypatch):
    """The exported run in a folder that a test may damage."""
    shutil.copytree(exported / "runs", tmp_path / "mine")
    monkeypatch.setenv("TUNEBOOK_RUNS", str(tmp_path / "mine"))
    return load_recipe(exported / "tiny.yaml", overrides=ALL)


def only(recipe, *to: str, **more):
    changed = recipe.export.model_copy(update={"to": list(to), **more})
    return recipe.model_copy(update={"export": changed})


def test_every_export_is_the_adapter(recipe):
    rows = read_json(recipe.run_dir / "export" / "parity.json")
    assert list(rows) == ["adapter", "merged", "gguf-f16", "gguf-q8_0"]
    for name, row in rows.items():
        assert row["differs"] == [] and row["prompts_equal"] == 1 and row["items"] == 6, name
        assert row["positions"] == 72 and row["stage"] == "sft"
        assert row["answers_equal"] == 1 and row["truncated"] == [0, 0] and row["accuracy"] == [1, 1]
    assert rows["adapter"]["max_logit_difference"] < 1e-4 and "rounding_loss" not in rows["adapter"]
    # The random base is in float32, so that all of it is rounded: less is lost of a longer training.
    assert 0 < rows["merged"]["rounding_loss"] == rows["gguf-f16"]["rounding_loss"] < 0.1
    assert (
        rows["adapter"]["mean_logp_difference"]
        < rows["merged"]["mean_logp_difference"]
        < rows["gguf-q8_0"]["mean_logp_difference"]
    )
    folder = recipe.run_dir / "export"
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    modelfile = (folder / "ollama" / "Modelfile").read_text()
    assert "FROM ../gguf-f16/tiny-f16.gguf" in modelfile
    # What the model can read, and not the 384 tokens that it was trained with.
    assert recipe.model.max_seq_length == 384 and "PARAMETER num_ctx 2048\n" in modelfile
    assert set(read_json(recipe.run_dir / "manifest.json")["stages"]) >= {
        "export/merged",
        "export/gguf-q8_0",
        "export/ollama",
    }
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))
    assert export.export(recipe) == rows  # nothing is made twice


def damage_tensor(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = run / "export" / "merged" / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name] + 0.5 * tensors[name].std() * tensors[name].sign().roll(1, 0)
    save_file(tensors, path, metadata={"format": "pt"})


def damage_template(run: Path) -> None:
    path = run / "export" / "merged" / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>", "<|im_start|> "))


def damage_stop(run: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        path = run / "export" / "merged" / name
        path.write_text(json.dumps(read_json(path) | {"eos_token_id": 3}))
    path = run / "export" / "merged" / "tokenizer_config.json"
    path.write_text(json.dumps(read_json(path) | {"eos_token": "<repo_name>"}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [(damage_tensor, "weights"), (damage_template, "chat template"), (damage_stop, "stop")],
)
def test_a_damaged_export_is_found_out(recipe, damage, says):
    damage(recipe.run_dir)
    with pytest.raises(UserError, match=f"merged is not the model that was trained: .*{says}"):
        export.export(only(recipe, "merged"), check=True)
    assert read_json(recipe.run_dir / "export" / "parity.json")["merged"]["differs"]
    merged = recipe.run_dir / "export" / "merged"
    assert says in (merged / "UNVERIFIED.txt").read_text()
    assert read_json(merged / "stage.json")["verified"] is False
    manifest = read_json(recipe.run_dir / "manifest.json")
    assert manifest["stages"]["export/merged"]["verified"] is False


def test_an_export_whose_check_fails_is_kept_marked_and_checked_again(recipe, monkeypatch, run_cli, capsys):
    pushed = []
    monkeypatch.setattr(export, "push", lambda *given: pushed.append(given))
    wanted = only(recipe, "merged", hub_id="me/it")
    merged = recipe.run_dir / "export" / "merged"
    shutil.rmtree(merged)
    with monkeypatch.context() as patch:
        patch.setattr(comparing, "free_ram", lambda: 0)
        with pytest.raises(export.Unverified, match=r"merged is not the model .*: not compared: .* is kept"):
            export.export(wanted)
    assert (merged / "model.safetensors").exists() and "not compared" in (
        merged / "UNVERIFIED.txt"
    ).read_text()
    assert "WARNING: merged is kept but unverified" in capsys.readouterr().out and not pushed
    before = (merged / "model.safetensors").stat().st_mtime_ns
    assert export.export(wanted)["merged"]["differs"] == []  # nothing is written, only compared
    assert (merged / "model.safetensors").stat().st_mtime_ns == before and len(pushed) == 1
    assert not (merged / "UNVERIFIED.txt").exists() and read_json(merged / "stage.json")["verified"]

    damage_tensor(recipe.run_dir)
    recipe_file = recipe.run_dir.parent / "damaged.yaml"
    content = recipe.model_dump(mode="json", exclude={"stages", "folders"})
    recipe_file.write_text(yaml.safe_dump(content))
    done = run_cli("export", "--recipe", str(recipe_file), "--to", "merged", "--check")
    assert (
        done.returncode == 2 and "tunebook: merged is not the model that was trained: weights" in done.stderr
    )
    assert "unverified: weights" in " ".join(done.stdout.split())


def test_after_qlora_the_table_has_the_model_that_was_trained(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEBOOK_RUNS", str(tmp_path / "runs"))
    from tunebook.training.sft import sft

    keys = {"model.load_in_4bit": True, "sft.max_steps": 30, "export.to": ["merged"], "export.items": 4}
    recipe = load_recipe(exported / "tiny.yaml", overrides=keys)
    sft(recipe)
    rows = export.export(recipe)
    assert list(rows) == ["merged", "trained in 4 bit"]
    assert rows["trained in 4 bit"]["mean_logp_difference"] > 5 * rows["merged"]["mean_logp_difference"]
    table = parity_table(rows)
    assert [row["verdict"] for row in table.rows] == ["equal", rows["trained in 4 bit"]["note"]]
    assert export.export(recipe) == rows  # nothing is made or loaded twice


def test_an_export_needs_no_held_out_rows(recipe):
    for split in ("test", "val"):
        (recipe.run_dir / "data" / f"{split}.parquet").unlink()
    assert export.export(only(recipe, "adapter"), check=True)["adapter"]["items"] == 6


def test_a_damaged_gguf_file_is_found_out(recipe):
    path = export.gguf_file(recipe, "gguf-f16")
    whole = path.read_bytes()
    assert whole.count(b"<|im_start|>user") == 0  # the template writes the role as a variable
    path.write_bytes(whole.replace(b"'<|im_start|>' + message", b"'<|im_end|>  ' + message"))
    assert path.read_bytes() != whole
    wanted = only(recipe, "gguf", quantizations=["f16"])
    with pytest.raises(UserError, match="gguf-f16 is not the model that was trained: chat template"):
        export.export(wanted, check=True)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"llama\.cpp does not load"):
        export.export(wanted, check=True)


def test_an_interrupted_export_leaves_nothing_and_force_replaces(recipe, monkeypatch):
    merged = recipe.run_dir / "export" / "merged"
    before = (merged / "model.safetensors").read_bytes()
    relicensed = recipe.model_copy(
        update={"export": recipe.export.model_copy(update={"data_license": "cc0-1.0"})}
    )  # other settings
    with pytest.raises(UserError, match="--force replaces it"):
        export.export(only(relicensed, "merged"))

    def interrupted(model, tokenizer, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export.adapters, "save_merged", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export.export(only(recipe, "merged"), force=True)
    assert sorted(p.name for p in merged.parent.iterdir() if p.is_dir()) == [
        "adapter",
        "gguf-f16",
        "gguf-q8_0",
        "merged",
        "ollama",
    ]
    assert (merged / "model.safetensors").read_bytes() == before
    # What the recipe no longer says still stands in the rows that it was trained on.
    silent = {"data": relicensed.data.model_copy(update={"system_prompt": None})}
    export.export(only(relicensed.model_copy(update=silent), "merged"), force=True)
    text = (merged / "README.md").read_text()
    system = (ROOT / "prompt" / "system.txt").read_text().strip()
    assert f"this system prompt:\n\n```text\n{system}\n```" in text and "training data cc0-1.0" in text


def test_the_card_says_what_the_run_recorded(recipe):
    text = card(recipe, "sft", "merged")
    block = yaml.safe_load(text.split("---")[1])
    assert (
        block["license"] == "apache-2.0"
        and block["base_model_relation"] == "finetune"
        and "sft" in block["tags"]
    )
    assert "This model has not been evaluated." in text and "DPO" not in text
    # vllm#2847, vllm#9280, LlamaFactory#9545: vLLM takes only some adapters.
    of_adapter = card(recipe, "sft", "adapter")
    assert "For vLLM take the merged weights" in of_adapter and "--max-lora-rank" in of_adapter
    assert "vllm serve ." not in of_adapter and "vllm serve ." in text
    rows = read_json(recipe.run_dir / "data" / "stage.json")["rows"]
    assert f"SFT: {rows['train']} rows; held out: {rows['val']} val, {rows['test']} test." in text
    summary = json.loads((ROOT / "resources" / "smollm2-math-new-words" / "summary.json").read_text())
    (recipe.run_dir / "eval").mkdir()
    (recipe.run_dir / "eval" / "summary.json").write_text(json.dumps(summary))
    assert "| sft | all | 600 | 35.7% (31.9 to 39.6) |" in card(recipe, "sft", "adapter")
