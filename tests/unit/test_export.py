"""Exports of a trained adapter, compared in fresh processes; damaged ones are found out."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace

import pytest

from tunebook.export import export, llama_cpp, parity
from tunebook.export.measure import Measured, Measurement
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def test_nothing_is_written_where_it_does_not_fit(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: usage(10**12, 0, 3 * 10**9))
    export._check_space(tmp_path, 10**9, ["merged"])
    with pytest.raises(UserError, match=r"3.0 GB free, about 5.1 GB are needed"):
        export._check_space(tmp_path, 10**9, ["merged", "gguf-f16", "gguf-q8_0", "ollama"])


def test_missing_stages_and_tools_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="run `uv run tunebook sft"):
        export.export(load_recipe())
    monkeypatch.setenv("TUNEBOOK_CACHE", str(tmp_path))
    monkeypatch.setenv("UNSLOTH_LLAMA_CPP_PATH", str(tmp_path))
    with pytest.raises(UserError, match="--install-tools"):
        llama_cpp.converter()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"q4_k_m needs llama\.cpp's quantiser"):
        llama_cpp.check_quantiser(["f16", "q4_k_m"])
    llama_cpp.check_quantiser(["f16", "q8_0"])
    (tmp_path / "llama-quantize").touch()
    llama_cpp.check_quantiser(["q4_k_m"])


def test_what_is_asked_brings_what_it_is_made_from():
    recipe = load_recipe(overrides={"export.to": ["ollama"], "export.quantizations": ["q8_0", "f16"]})
    assert export.targets(recipe) == ["merged", "gguf-q8_0", "ollama"]
    with pytest.raises(UserError, match=r"export\.to"):
        load_recipe(overrides={"export.to": ["onnx"]})
    with pytest.raises(UserError, match="quantizations"):
        load_recipe(overrides={"export.quantizations": ["../x"]})


def test_a_pushed_export_is_private_and_whole_with_a_stub_in_place_of_the_hub(monkeypatch):
    import huggingface_hub

    calls = []

    class Hub:
        def create_repo(self, repo, **given):
            calls.append((repo, given))

        def upload_folder(self, **given):
            calls.append(given)
            if given["path_in_repo"] == "merged":
                raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    recipe = load_recipe()
    export.push(recipe, "me/it", ["adapter"])
    assert calls == [
        ("me/it", {"private": True, "exist_ok": True}),
        {
            "repo_id": "me/it",
            "folder_path": recipe.run_dir / "export/adapter",
            "path_in_repo": None,
            "ignore_patterns": ["stage.json"],
        },
    ]
    with pytest.raises(UserError, match="the hub did not take me/it: no network"):
        export.push(recipe, "me/it", ["adapter", "merged"])


def test_a_check_pushes_nothing(monkeypatch):
    recipe = load_recipe(
        overrides={"export.to": ["adapter"], "export.hub_id": "me/it", "export.stage": "sft"}
    )
    for name in ("sft", "export/adapter"):
        (recipe.run_dir / name).mkdir(parents=True)
    (recipe.run_dir / "sft" / "stage.json").write_text('{"key": "k"}')
    pushed = []
    monkeypatch.setattr(export, "_export", lambda *given: None)
    monkeypatch.setattr(export, "push", lambda *given: pushed.append(given))
    export.export(recipe, check=True)
    assert not pushed
    export.export(recipe, force=True)
    assert [given[1:] for given in pushed] == [("me/it", ["adapter"])]


def measured(**changes):
    """Four questions, each answered alike."""
    question = Measurement([1, 2], "\\boxed{1}", False, [5, 6], [-0.1, -0.2], [5, 6], [0.0, 1.0])
    return Measured([replace(question, **changes)] * 4, ends=[2])


def test_the_row_of_an_equal_model_and_of_a_lossy_one():
    golds = [{"gold": gold} for gold in ("1", "1", "2", None)]
    same = parity.compare("merged", measured(), measured(), golds)
    assert (same["differs"], same["accuracy"], same["max_logp_difference"]) == ([], [2 / 3, 2 / 3], 0.0)
    lossy = measured(top=[5, 7], logps=[-0.1, -0.5], answer="\\boxed{2}")
    found = parity.compare("q8_0", measured(), lossy, golds)
    assert found["top_1_agreement"] == 0.5 and found["mean_logp_difference"] == pytest.approx(0.15)
    assert [d.split(":")[0] for d in found["differs"]] == ["weights", "weights", "answers"]
    assert [d.split(":")[0] for d in parity.compare("q4_k_m", measured(), lossy, golds)["differs"]] == [
        "weights"
    ]
