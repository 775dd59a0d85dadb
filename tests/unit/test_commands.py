"""The program's words: short options, and what people type who come from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tunebook.cli import app
from tunebook.commands import stages
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.runs.stages import StageSpec


def typed(line: str):
    return CliRunner().invoke(app, line.split())


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("train", "there is no command 'train': `tunebook sft` trains on answers"),
        ("test", "`tunebook evaluate`"),
        ("resume", "the same command again"),
        ("sft --data my.csv", "`tunebook sft` has no option --data: `tunebook init my.csv`"),
        ("run --lr=1e-4", "`--set sft.learning_rate=...` or `--set dpo.learning_rate=...`"),
        ("dpo --config my.yaml", "`--recipe my.yaml`"),
        ("run my.yaml", "give the recipe as an option: `tunebook run --recipe my.yaml`"),
        ("sft my.csv", "`tunebook init my.csv` writes a recipe for these rows"),
        ("sft --recipe my.csv", "my.csv is no recipe: .*`.*init my.csv`"),
        ("recipe show --set data.train=5", "did you mean data.sources.0.train?"),
        ("recipe show --set data.sources.0.path=my.csv", "--set 'data.sources=..path: my.csv..'"),
    ],
)
def test_words_of_other_tools_are_answered(line, answer):
    with pytest.raises(UserError, match=answer):
        raise typed(line).exception


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_short_options_are_the_keys_of_the_stage(stage, monkeypatch):
    recipes = []

    def run(spec, recipe, **options):
        recipes.append(recipe)
        return {"metrics": {}}

    monkeypatch.setattr(StageSpec, "run", run)
    result = typed(f"{stage} --lr 3e-4 --epochs 2 --max-steps 7 --batch-size 3 --seed 5")
    assert result.exit_code == 0, result.output
    section = getattr(recipes[0], stage)
    keys = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size")
    assert [section[key] for key in keys] == [3e-4, 2, 7, 3] and recipes[0].seed == 5
    # The next command has to mean the same recipe.
    assert f"--set {stage}.learning_rate=0.0003" in result.output


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("chat -q Hello", r"did you mean m3\?; the base model alone: `uv run tunebook chat --model base "),
        ("evaluate", r"did you mean m3\?; the base model alone: `uv run tunebook evaluate base "),
        ("evaluate base sft", r"did you mean m3\?"),
        ("bench", r"did you mean m3\?"),
        ("export", r"did you mean m3\?$"),
        ("report", r"did you mean m3\?$"),
    ],
)
def test_a_run_that_does_not_exist_is_not_answered_by_the_base_model(line, answer, tmp_path):
    (tmp_path / "runs" / "m3").mkdir(parents=True)
    with pytest.raises(UserError, match="no run 'm4' in .*runs, " + answer):
        raise typed(f"{line} --run m4").exception


def test_a_folder_is_no_recipe_and_the_files_in_it_are_named(tmp_path):
    (tmp_path / "company").mkdir()
    with pytest.raises(UserError, match=r"company is a folder: give a \.yaml file in it \(there is none\)"):
        raise typed(f"run --recipe {tmp_path / 'company'}").exception
    (tmp_path / "company" / "support.yaml").touch()
    with pytest.raises(UserError, match=r"\(there is .*/company/support\.yaml\)"):
        raise typed(f"run --recipe {tmp_path / 'company'}").exception


def test_the_base_model_alone_may_be_evaluated_in_a_new_run(monkeypatch):
    asked = []
    monkeypatch.setattr("tunebook.evaluation.evaluate.evaluate", lambda *args: asked.append(args[1]) or {})
    monkeypatch.setattr("tunebook.evaluation.tables.show", lambda *_: None)
    monkeypatch.setattr("tunebook.evaluation.first_screen.show", lambda *_: None)
    assert typed("evaluate base --run new").exit_code == 0
    assert asked == [["base"]]


def test_notebooks_are_listed_and_copied_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert [line.split()[0] for line in typed("notebooks").output.splitlines()] == [n[:-6] for n in names]
    assert typed("notebooks --copy").output.startswith(f"Wrote {len(names)} notebooks to notebooks.")
    assert sorted(path.name for path in (tmp_path / "notebooks").iterdir()) == names
    (tmp_path / "notebooks" / names[0]).write_text(json.dumps({"mine": 1}))
    with pytest.raises(UserError, match="is there already"):
        raise typed("notebooks --copy").exception
    assert "mine" in (tmp_path / "notebooks" / names[0]).read_text()


def test_a_run_is_reported_on_by_its_name_or_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = load_recipe().run_dir.parent
    for folder in (runs / "night", tmp_path / "moved"):
        folder.mkdir(parents=True)
    assert stages._run_folder("night") == runs / "night" == stages._run_folder(str(runs / "night"))
    assert stages._run_folder("moved") == Path("moved")
    with pytest.raises(UserError, match=r"no run 'nihgt' in .*, did you mean night"):
        stages._run_folder("runs/nihgt")
