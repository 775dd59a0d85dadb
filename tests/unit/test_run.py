"""The run folder: whole results or none, one writer at a time, a manifest that says what was done."""

from __future__ import annotations

import contextlib
import json
import pkgutil
import subprocess
from pathlib import Path

import pytest

from tunebook import pipeline
from tunebook.evaluation.compare import compare_manifests
from tunebook.pipeline import run
from tunebook.recipe.effects import rows_a_step
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe
from tunebook.runs.changed import say_changed
from tunebook.runs.files import intact, read_json
from tunebook.runs.manifest import manifest
from tunebook.runs.stage import Stage, adapter_key, command
from tunebook.runs.stages import (
    STAGES,
    StageSpec,
    model_names,
    next_command,
    parse_name,
    steps,
    trained_models,
    training_behind,
)


def stage(**settings) -> Stage:
    return Stage(load_recipe(overrides={"sft.learning_rate": 0.5}), "sft", settings, {"data": "abc"})


def answered(text: str, **settings) -> Stage:
    """A stage that keeps answers, with their key, and a file of another kind."""
    filled = stage(**settings)
    with filled.open() as folder:
        (folder / "samples.jsonl").write_text(text)
        (folder / "samples.jsonl.key").write_text("k")
        (folder / "rows.jsonl").write_text(text)
    return filled


def kept(**settings) -> dict[str, str]:
    """The files that a stage of other settings begins with, and their content."""
    resume = settings.pop("resume", True)
    files = {}
    with pytest.raises(KeyboardInterrupt), stage(**settings).open(resume) as folder:
        for file in folder.iterdir():
            files[file.name] = file.read_text()
        raise KeyboardInterrupt
    files.pop("started.json")
    return files


def test_answers_of_a_stage_of_other_settings_are_kept_and_nothing_else():
    finished = answered("of the finished one", x=1)
    answers = {"samples.jsonl": "of the finished one", "samples.jsonl.key": "k"}
    assert kept(x=2) == answers
    # The interrupted one's own come before those of the finished one.
    (finished.partial / "samples.jsonl").write_text("newer")
    (finished.partial / "half.jsonl").write_text("without a key")
    assert kept(x=3) == answers | {"samples.jsonl": "newer"}
    assert kept(x=4, resume=False) == {}
    (finished.dir / "samples.jsonl").write_text("damaged")
    assert kept(x=5) == {}
    assert finished.dir.exists() and (finished.dir / "rows.jsonl").exists()


def test_a_result_appears_whole_and_is_recorded():
    first = stage(x=1)
    with first.open() as folder:
        (folder / "file").write_text("1")
        first.record = {"metrics": {"loss": 0.5}}
        assert not first.dir.exists()
    assert first.done and stage(x=1).done and not stage(x=2).done
    written = json.loads((first.recipe.run_dir / "manifest.json").read_text())["stages"]["sft"]
    assert written["metrics"] == {"loss": 0.5}
    assert written["recipe"]["sft"]["learning_rate"] == 0.5
    assert written["overrides"]["sft.learning_rate"] == {
        "recipe": load_recipe().sft["learning_rate"],
        "used": 0.5,
    }
    assert (
        written["versions"]["trl"]
        and written["versions"]["unsloth"]
        and written["lock"]
        and written["hardware"]["cores"]
    )
    assert set(written["git"]) == {"commit", "dirty"}
    assert written["started"] <= written["ended"]
    assert written["peak_memory_gb"]["process"] > 0
    assert sorted(p.name for p in first.dir.iterdir()) == ["file", "stage.json"]


def test_a_failure_leaves_the_old_result_and_the_partial_one_can_be_resumed():
    with stage(x=1).open() as folder:
        (folder / "file").write_text("old")
    with pytest.raises(RuntimeError), stage(x=2).open() as folder:
        (folder / "checkpoint").write_text("half")
        raise RuntimeError
    assert (stage(x=1).dir / "file").read_text() == "old"
    assert stage(x=1).done and not stage(x=2).done
    with stage(x=2).open(resume=True) as folder:
        assert (folder / "checkpoint").exists()
    with pytest.raises(RuntimeError), stage(x=3).open() as folder:
        (folder / "checkpoint").write_text("half")
        raise RuntimeError
    with stage(x=4).open(resume=True) as folder:  # other settings: nothing to go on from
        assert not (folder / "checkpoint").exists()
    assert list(manifest(stage(x=4).recipe.run_dir)["stages"]) == ["sft"]


def test_a_result_that_came_out_otherwise_makes_what_was_built_on_it_stale():
    """Settings and inputs, and so the keys, are the same: a server's answers, or a GPU's sums, are not."""
    recipe = load_recipe()

    def made(name: str, content: str, **inputs: str) -> Stage:
        made = Stage(recipe, name, {}, inputs)
        with made.open(resume=False) as folder:
            (folder / "train.parquet").write_text(content)
            (folder / "seconds.json").write_text(
                str(len(list(recipe.run_dir.rglob("*"))))
            )  # another one each time
        return made

    pairs = made("pairs", "first")
    dpo = made("dpo", "weights", pairs=pairs.key)
    scores = made("eval/dpo", "scores", adapter=dpo.key)
    made("pairs", "first")
    assert dpo.done and scores.done
    made("pairs", "second")
    assert not dpo.done and scores.done  # which is of the DPO model that is still there
    made("dpo", "other weights", pairs=pairs.key)
    assert dpo.done and not scores.done


def test_a_run_and_its_repetition_side_by_side():
    """What is the same is said, what differs is shown.

    A changed prompt file, a setting, one step's loss, an answer.
    """

    def make(name: str, prompt: str, rate: float, loss: float, answer: str) -> Path:
        recipe = load_recipe(run=name)
        for stage, record, file, content in (
            ("data", {"fingerprints": {"train": "f"}, "rows": {"train": 1}}, "train.parquet", ""),
            (
                "sft",
                {"metrics": {"steps": 2}},
                "metrics.jsonl",
                f'{{"step": 1, "loss": 2.0}}\n{{"step": 2, "loss": {loss}}}\n',
            ),
            (
                "eval/base",
                {"summary": {"correct": 1}},
                "predictions.jsonl",
                json.dumps({"index": 0, "answer": answer}) + "\n",
            ),
        ):
            written = Stage(
                recipe,
                stage,
                {"rate": rate},
                {"prompt/system.txt": prompt} if stage == "data" else {"data": prompt},
            )
            with written.open() as folder:
                (folder / file).write_text(content)
                written.record = record
        return recipe.run_dir / "manifest.json"

    def table(*manifests: Path) -> dict[str, list[str]]:
        rows = [line.strip("| ").split(" | ") for line in compare_manifests(*manifests).splitlines()]
        return {row[0]: row[1:] for row in rows[2:]}

    first = make("first", "a", 0.1, 1.5, "7")
    assert {said[0] for said in table(first, make("again", "a", 0.1, 1.5, "7")).values()} == {
        "identical",
        "not compared",
    }
    changed = table(first, make("changed", "b", 0.2, 1.25, "8"))
    assert changed["input files"] == ["**1 of 1 differ**", "prompt/system.txt: a", "prompt/system.txt: b"]
    assert changed["settings"] == ["**3 of 3 differ**", "data.rate: 0.1", "data.rate: 0.2"]
    assert changed["sft: loss by step"] == ["**1 of 2 differ**", "2: 1.5", "2: 1.25"]
    assert changed["eval/base: answers"] == ["**1 of 1 differ**", "0: 7", "0: 8"]
    assert changed["data"][0] == changed["versions"][0] == changed["hardware"][0] == "identical"
    with pytest.raises(UserError, match=r"is no manifest of a run"):
        compare_manifests(first, first.with_name("none.json"))


def test_a_changed_file_of_a_finished_stage_is_named():
    with stage(x=1).open() as folder:
        (folder / "adapter").mkdir()
        for name in ("adapter/a", "b"):
            (folder / name).write_text("1")
    done = stage(x=1).dir
    assert intact(done / "adapter") == done / "adapter" and read_json(done / "stage.json")[
        "files"
    ].keys() == {"adapter/a", "b"}
    (done / "b").write_text("2")
    assert intact(done / "adapter")  # not its neighbour's matter
    with pytest.raises(
        UserError,
        match=r"b is damaged: .*; `uv run tunebook sft --set sft.learning_rate=0.5 --force` makes it again",
    ):
        intact(done / "b")
    (done / "adapter" / "a").unlink()
    with pytest.raises(UserError, match=r"adapter/a is missing: "):
        intact(done / "adapter")


def test_damaged_json_reads_as_nothing(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    assert read_json(tmp_path / "x.json") == {} == read_json(tmp_path / "missing.json")


@pytest.mark.parametrize("spec", STAGES.values(), ids=lambda spec: spec.name)
def test_each_row_of_the_table_of_stages_names_what_there_is(spec):
    assert callable(pkgutil.resolve_name(f"{spec.module}:{spec.function}"))
    assert callable(pkgutil.resolve_name(f"{spec.module}:{spec.name.replace('-', '_')}_stage"))
    assert set(spec.needs) <= STAGES.keys() and set(spec.decides) <= Recipe.model_fields.keys()
    assert not spec.notebook or (ROOT / "notebooks" / f"{spec.notebook}.ipynb").exists()


def test_a_folder_says_its_stage_its_round_and_its_command():
    recipe = load_recipe()
    for name, spec, number, inside, words in (
        ("data", "data", 1, (), "prepare"),
        ("dpo-12", "dpo", 12, (), "dpo --round 12"),
        ("eval/dpo-2", "eval", 1, ("dpo-2",), "evaluate dpo-2"),
        ("bench/sft/gsm8k", "bench", 1, ("sft", "gsm8k"), "bench"),
    ):
        parsed = parse_name(name)
        assert (parsed.spec.name, parsed.round, parsed.inside) == (spec, number, inside)
        assert command(recipe, name) == f"uv run tunebook {words}"
    for name in ("base", "eval", "data/train.jsonl", "prompt/system.txt", "dpo-two"):
        assert parse_name(name) is None
    assert training_behind("dpo-2") == ["sft", "dpo"] and training_behind("base") == []


def test_rounds_repeat_pairs_and_dpo_between_sft_and_the_evaluation():
    names = list(steps(load_recipe(overrides={"pairs.rounds": 2})))
    assert names == ["prepare", "sft", "pairs", "dpo", "pairs-2", "dpo-2", "evaluate"]


ONLY = [
    # (the recipe's sections, the steps of `tunebook run`, the models that can be asked)
    ("data", ["prepare", "sft", "evaluate"], ["base", "sft"]),
    ("pairs", ["pairs", "dpo", "evaluate"], ["base", "dpo"]),
    ("data dpo", ["prepare", "pairs", "dpo", "evaluate"], ["base", "dpo"]),
    ("data sft dpo", ["prepare", "sft", "pairs", "dpo", "evaluate"], ["base", "sft", "dpo"]),
]


def write_recipe(folder: Path, sections: str) -> Path:
    texts = {
        "data": "data: {sources: [{format: chat, path: my.csv}]}\n",
        "pairs": "pairs: {dataset: p.jsonl}\n",
        "sft": "sft:\n",
        "dpo": "dpo:\n",
    }
    path = folder / "mine.yaml"
    path.write_text("extends: smollm2\n" + "".join(texts[name] for name in sections.split()))
    for name in ("my.csv", "p.jsonl"):
        (folder / name).write_text("")
    return path


@pytest.mark.parametrize(("sections", "names", "models"), ONLY)
def test_only_what_the_recipe_asks_for(sections, names, models, tmp_path, capsys):
    recipe = load_recipe(write_recipe(tmp_path, sections))
    assert list(steps(recipe)) == names and model_names(recipe) == models
    assert run(recipe, dry_run=True) == names
    said = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert said == names
    # Each step names the next one, the last one the report.
    option = f"--recipe {recipe.source}"
    for name, following in zip(names, [*names[1:], "report"], strict=True):
        assert next_command(recipe, name) == f"uv run tunebook {following} {option}"


def test_run_trains_on_all_gpus_by_torchrun_with_processes_patched_out(tmp_path, monkeypatch, capsys):
    """`NPROC_PER_NODE=4 tunebook run`: a notebook is one process, so the training goes through torchrun."""
    path = write_recipe(tmp_path, "data sft pairs dpo")
    recipe = load_recipe(path, "two", overrides={"lora.r": 4, "model.dtype": None})
    calls = []

    def launched(command: list[str], check: bool) -> subprocess.CompletedProcess:
        calls.append(" ".join(command[1:]))
        return subprocess.CompletedProcess(command, code)

    def executed(step: object, recipe: object, force: bool, fresh: bool) -> None:
        calls.append(f"{step.name} {force}")

    code = 0
    monkeypatch.setattr(pipeline.subprocess, "run", launched)
    monkeypatch.setattr(pipeline, "_execute", executed)
    monkeypatch.setattr(pipeline, "folders", lambda step, recipe: [])
    monkeypatch.setenv("NPROC_PER_NODE", "4")
    assert run(recipe, first="sft", last="sft", force=True, dry_run=True) == ["sft"] and not calls
    rows = rows_a_step(recipe.sft)
    assert f"sft       in 4 processes, {rows} rows a step in all" in capsys.readouterr().out
    run(recipe, first="sft", last="dpo", force=True)
    torchrun = "-m tunebook.training.launch --standalone --nproc-per-node 4 -m tunebook"
    options = f"--recipe {recipe.source} --run two --set lora.r=4 --set model.dtype=null"
    assert calls == [
        f"{torchrun} sft {options} --force",
        "sft False",  # it is there: not once more
        "pairs True",
        f"{torchrun} dpo {options} --round 1 --force",
        "dpo False",
    ]
    code = 2
    with pytest.raises(UserError, match="sft failed in one of 4 processes"):
        run(recipe, first="sft", last="sft", force=True)
    assert len(calls) == 6  # no notebook after it
    monkeypatch.delenv("NPROC_PER_NODE")
    run(recipe, first="sft", last="sft", force=True)
    assert calls[6:] == ["sft True"]


def test_the_part_of_a_notebook_that_is_at_work_is_named(tmp_path):
    def cell(kind, text, started):
        metadata = {"papermill": {"start_time": started}}
        return {"cell_type": kind, "source": text.splitlines(True), "metadata": metadata}

    notebook = tmp_path / "02_sft.ipynb"
    assert pipeline._part(notebook) == ""
    cells = [cell("markdown", "# 2. SFT\n\nText", "now"), cell("markdown", "## Rows\n", "now")]
    cells += [cell("code", "rows", "now"), cell("markdown", "## The model\n\nText", "now")]
    cells += [cell("code", "load", "now"), cell("markdown", "## Later", None), cell("code", "train", None)]
    notebook.write_text(json.dumps({"cells": cells}))
    assert pipeline._part(notebook) == ' in "The model"'
    notebook.write_text(notebook.read_text()[:50])  # it is being written
    assert pipeline._part(notebook) == ""


def test_a_step_that_is_not_asked_for_is_named(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, "data"))
    with pytest.raises(UserError, match="the recipe mine does not ask for dpo: name its section"):
        run(recipe, last="dpo", dry_run=True)
    with pytest.raises(UserError, match="no step 'orpo': choose from prepare, sft, evaluate"):
        run(recipe, last="orpo", dry_run=True)
    with pytest.raises(UserError, match="nothing lies between --from evaluate and --until sft: sft comes"):
        run(recipe, first="evaluate", last="sft")


def test_a_file_that_is_missing_is_no_stage_that_has_not_run(tmp_path):
    path = write_recipe(tmp_path, "data")
    (tmp_path / "my.csv").unlink()
    with pytest.raises(UserError, match=r"my\.csv"):
        run(load_recipe(path), dry_run=True)


def test_an_unfinished_training_of_other_settings_is_refused_before_its_notebook(tmp_path, capsys):
    path = write_recipe(tmp_path, "data sft")
    recipe = load_recipe(path)
    for name in ("data", "sft"):
        stage = pipeline.STAGES[name].folder(recipe)
        with contextlib.suppress(KeyboardInterrupt), stage.open() as folder:
            if name == "sft":
                (folder / "checkpoints" / "checkpoint-7").mkdir(parents=True)
                raise KeyboardInterrupt
    assert run(recipe, first="sft", last="sft", dry_run=True) == ["sft"]
    assert "sft       would run: sft is unfinished, up to checkpoint-7\n" in capsys.readouterr().out
    slower = load_recipe(path, overrides={"sft.learning_rate": 1e-5})
    with pytest.raises(UserError, match=r"^an unfinished sft is there, up to checkpoint-7, .* --fresh"):
        run(slower, first="sft", last="sft", dry_run=True)
    # Run by hand all the same, it goes on as the whole chain does, and its model can be asked.
    assert next_command(recipe, "pairs").startswith("uv run tunebook dpo ")
    with Stage(recipe, "dpo", {}, {}).open() as folder:
        (folder / "adapter").mkdir()
    assert model_names(recipe) == ["base", "sft", "dpo"]


def test_a_repetition_does_what_was_done_and_takes_nothing_from_todays_defaults(tmp_path, monkeypatch):
    recipe = load_recipe(write_recipe(tmp_path, "data sft dpo"), overrides={"sft.learning_rate": 0.5})
    for name in ("data", "sft"):
        with Stage(recipe, name, {}, {}).open() as folder:
            (folder / "file").write_text(name)
    ran = []
    monkeypatch.setattr(
        pipeline, "run", lambda again, first, last, dry_run: ran.append((again, first, dry_run))
    )
    monkeypatch.setattr(pipeline, "data_stage", lambda again: Stage(again, "data", {}, {}))
    monkeypatch.setattr(pipeline, "compare_manifests", lambda old, new: "compared")
    assert pipeline.repeat(recipe.run_dir / "manifest.json") == "compared"
    again = load_recipe(recipe.run_dir.with_name("mine-again") / "recipe.yaml")
    assert again.stages == ["sft"] and [step[1:] for step in ran] == [("prepare", False), ("sft", False)]
    assert pipeline.repeat(recipe.run_dir / "manifest.json", dry_run=True).endswith("Nothing was run.")
    assert [step[1:] for step in ran[2:]] == [("prepare", True), ("sft", True)]
    assert again.sft == recipe.sft and again.lora == recipe.lora and again.dpo == recipe.dpo
    assert set(again.origins[f"sft.{key}"].rpartition("/")[2].partition(":")[0] for key in again.sft) == {
        "recipe.yaml"
    }


def test_later_rounds_are_named_by_their_command():
    recipe = load_recipe(overrides={"pairs.rounds": 2})
    commands = [next_command(recipe, name).partition(" --set")[0] for name in ("dpo", "pairs-2", "dpo-2")]
    assert commands == [
        f"uv run tunebook {words}" for words in ("pairs --round 2", "dpo --round 2", "evaluate")
    ]


def test_a_new_trainer_is_one_row(monkeypatch):
    """The run folder, its manifest, the pipeline and what can be asked know of it by the table alone."""
    row = StageSpec("kto", "kto", "tunebook.training.kto", notebook="06_kto", needs=("sft",), trains=True)
    monkeypatch.setitem(STAGES, "kto", row)
    recipe = load_recipe()
    assert list(steps(recipe)) == ["prepare", "sft", "pairs", "dpo", "evaluate", "kto"]
    assert command(recipe, "kto") == "uv run tunebook kto" and training_behind("kto") == ["sft", "kto"]
    trained = Stage(recipe, "kto", {}, {})
    with trained.open() as folder:
        (folder / "adapter").mkdir()
    assert model_names(recipe) == ["base", "sft", "dpo", "kto"] and trained_models(recipe) == ["base", "kto"]
    assert list(manifest(recipe.run_dir)["stages"]) == ["kto"] and adapter_key(recipe, "kto") == trained.key


def test_a_model_that_was_trained_with_other_settings_is_said(tmp_path, capsys):
    path = write_recipe(tmp_path, "data sft")
    trained = load_recipe(path, overrides={"lora.r": 8, "sft.max_steps": 4})
    stage = pipeline.STAGES["sft"].folder(trained)
    with stage.open() as folder:
        (folder / "adapter").mkdir()
    capsys.readouterr()
    # What only watches changes no weights.
    say_changed(
        load_recipe(path, overrides={"lora.r": 8, "sft.max_steps": 4, "sft.logging_steps": 1}), ["sft"]
    )
    assert capsys.readouterr().out == ""
    say_changed(load_recipe(path), ["base", "sft"])
    said = capsys.readouterr().out
    assert said == (
        "Warning: sft was trained with other settings than the recipe has now (lora.r 8 -> 16, "
        "sft.max_steps 4 -> not set). The results are those of the trained model\n"
    )
