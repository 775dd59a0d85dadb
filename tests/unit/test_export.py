"""Exports of a trained adapter, compared in fresh processes; damaged ones are found out."""

from __future__ import annotations

import subprocess
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunebook.evaluation import tables
from tunebook.export import comparing, export, llama_cpp, measure, parity
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
    with pytest.raises(UserError, match=r"no GGUF type 'q4', did you mean q4_0 or q4_1 or .*q4_k_m\?"):
        llama_cpp.check_quantiser(["q4"])
    with pytest.raises(UserError, match=r"no GGUF type 'q8', did you mean q8_0\?"):
        llama_cpp.check_quantiser(["q8"])


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
    assert [d.split(":")[0] for d in found["differs"]] == ["weights", "weights"]
    assert [d.split(":")[0] for d in parity.compare("q4_k_m", measured(), lossy, golds)["differs"]] == [
        "weights"
    ]


def test_other_greedy_answers_are_refused_of_an_adapter_in_float32_alone():
    """Of one adapter in bfloat16 and in float32 14 of 20 answers were equal, each token within 0.005."""
    other = measured(logps=[-0.105, -0.205], answer="\\boxed{2}")
    exact = parity.compare("adapter", measured(), other, [{"gold": "1"}] * 4)
    assert [d.split(":")[0] for d in exact["differs"]] == ["answers"]
    other.dtype = "bfloat16"
    rounded = parity.compare("adapter", replace(measured(), dtype="bfloat16"), other, [{"gold": "1"}] * 4)
    assert rounded["differs"] == [] and (rounded["answers_equal"], rounded["dtype"]) == (0, "bfloat16")
    assert parity.compare("merged", measured(), measured(answer="x"), [{"gold": "1"}] * 4)["differs"] == []


def test_some_answers_that_run_on_are_no_wrong_end_token_where_it_is_as_likely():
    """After 6 steps of training 4 of 14 answers in 8 bits did not end; none ends with a wrong token."""
    ended = measured().questions[0]

    def reasons(running_on: int, end_logp: float) -> list[str]:
        after = [replace(ended, logps=[-0.1, end_logp], truncated=i < running_on) for i in range(14)]
        row = parity.compare("q8_0", before, Measured(after, ends=[]), [{"gold": "1"}] * 14)
        return row["differs"]

    before = Measured([ended] * 14, ends=[2])
    assert reasons(4, -0.25) == reasons(7, -0.25) == reasons(1, -0.35) == []
    for running_on, end_logp in ((4, -0.35), (8, -0.2), (14, -0.2)):
        (reason,) = reasons(running_on, end_logp)
        assert reason.startswith(f"stop: {running_on} of 14 answers do not end (with the adapter 0): ")
        assert "train longer or export f16" in reason
    # Another end token in the configuration is found however the answers end.
    other = parity.compare("merged", before, Measured([ended] * 14, ends=[3]), [{"gold": "1"}] * 14)
    assert other["differs"] == ["stop: a turn ends at the tokens [3], with the adapter at [2]"]


def test_the_last_token_of_an_answer_is_compared():
    assert measure._positions(1) == [0] and measure._positions(3) == [0, 1, 2]
    positions = measure._positions(100)
    assert len(positions) == len(set(positions)) == 12 and (positions[0], positions[-1]) == (0, 99)


def test_ollama_is_marked_with_the_file_that_it_runs():
    recipe = load_recipe()
    folder = recipe.run_dir / "export"
    for name in ("gguf-q8_0", "gguf-f16", "ollama"):
        (folder / name).mkdir(parents=True)
    (folder / "ollama" / "Modelfile").write_text("FROM ../gguf-q8_0/run-q8_0.gguf\n")

    def note(name: str, differs: list[str]) -> list[str]:
        entry = SimpleNamespace(dir=folder / name, add_to_record=lambda record: None)
        export._note(recipe, entry, name, {"differs": differs})
        return sorted(path.parent.name for path in folder.rglob("UNVERIFIED.txt"))

    assert note("gguf-q8_0", ["weights: x"]) == ["gguf-q8_0", "ollama"]
    assert "weights: x" in (folder / "ollama" / "UNVERIFIED.txt").read_text()
    assert note("gguf-f16", []) == ["gguf-q8_0", "ollama"]
    assert note("gguf-q8_0", []) == []


def test_reasons_stand_below_the_table_and_not_in_a_cell_of_it():
    rows = {
        "adapter": {"items": 0, "differs": []},
        "merged": {"items": 0, "differs": ["weights: x", "stop: y"]},
    }
    assert [row["verdict"] for row in tables.parity_table(rows).rows] == ["equal", "unverified"]
    assert tables.parity_reasons(rows) == ["merged is not the model that was trained: weights: x; stop: y"]


def test_limits_follow_the_bits_that_are_left():
    limits = [parity.limits(name, "float32") for name in ("adapter", "merged", "q8_0", "q4_k_m", "q2_k")]
    assert limits == sorted(limits, reverse=True) and len(set(limits)) == 5
    assert parity.limits("adapter", "bfloat16") == parity.limits("f16", "float32") == limits[1]
    assert parity.limits("iq4_xs", "float32") == limits[3]


def test_positions_that_llama_cpp_does_not_tell_are_left_out():
    nan = measured(logps=[-0.1, float("nan")], top=[5, -1])
    row = parity.compare("f16", measured(), nan, [{"gold": "1"}] * 4)
    assert (row["positions"], row["top_1_agreement"], row["differs"]) == (4, 1, [])


@pytest.mark.parametrize(("expected", "found"), [(-9.0, -9.0), (-2.0, -7.0)])
def test_a_token_that_llama_cpp_does_not_name_counts_as_no_less_likely_than_it_must(
    monkeypatch, expected, found
):
    """Random weights have tokens beyond the fifty; equal ones then differed by 0.24 on average."""
    reply = {
        "completion_probabilities": [
            {"top_logprobs": [{"id": 8, "logprob": -1.0}, {"id": 9, "logprob": -7.0}]}
        ]
    }
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    replies = {
        "/apply-template": {"prompt": "p"},
        "/tokenize": {"tokens": [1]},
        "/v1/chat/completions": {"choices": [choice]},
        "/completion": reply,
    }
    monkeypatch.setattr(measure, "_post", lambda url, path, **body: replies[path])
    asked = Measurement([1], "x", False, [5], [expected], [8])
    assert measure._measure_served("url", [], asked, 4).logps == [found]


def test_rounding_is_named_where_it_has_cost_much_of_the_adapter():
    merged = SimpleNamespace(result={"rounding_loss": 0.78})
    row = comparing.with_rounding({"differs": ["weights: x"]}, merged)
    assert row["differs"][-1].startswith("rounding to 16 bits has lost 78% of what the adapter changes")
    assert comparing.with_rounding({"differs": []}, merged) == {"differs": [], "rounding_loss": 0.78}
    merged.result["rounding_loss"] = 0.01
    assert comparing.with_rounding({"differs": ["weights: x"]}, merged)["differs"] == ["weights: x"]


def test_a_comparison_that_is_killed_says_so(monkeypatch):
    def killed(command, **options):
        return subprocess.CompletedProcess(command, -9, "", "")

    monkeypatch.setattr(measure.subprocess, "run", killed)
    row = parity.check(Path("merged"), "merged", measured(), [], 4)
    assert row["items"] == 0 and "killed, most likely because the memory was not enough" in row["differs"][0]


def test_a_comparison_for_which_memory_is_not_enough_is_not_begun(monkeypatch):
    monkeypatch.setattr(comparing, "free_ram", lambda: 10**10)
    assert comparing.too_large(10**9, measured(), "merged") is None
    row = comparing.too_large(4 * 10**9, measured(), "merged")
    assert row["differs"][0].startswith("not compared: that takes about 19.2 GB of memory, 10.0 GB are free")
    assert comparing.too_large(4 * 10**9, measured(), "gguf-f16") is None
