"""Every file and folder that a recipe names is found beside it, from wherever the command is run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunebook.data import benchmark_items, raw_solutions
from tunebook.data.prepare import _inputs
from tunebook.data.prompts import Prompts
from tunebook.data.records import records
from tunebook.data.sources import local_path
from tunebook.models import chat_template
from tunebook.pairs import existing
from tunebook.pairs.pairs import pairs_stage
from tunebook.recipe import files
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe
from tunebook.training import arguments

RECIPE = """
extends: null
model: {base: my-model, chat_template: chat.jinja}
data:
  system_prompt: system.txt
  sources:
    - {format: chat, path: rows.jsonl, images: pictures}
    - {format: mm_math, path: figures}
clean: {source: raw.jsonl, prompt: rewrite.txt}
pairs: {dataset: prefs.jsonl}
evaluate: {benchmarks: {data: benches}}
sft: {deepspeed: zero.json}
"""

FILES = {
    "my-model/config.json": "{}",
    "chat.jinja": "{{ messages[0].content }}",
    "system.txt": "Be brief.",
    "rows.jsonl": json.dumps({"prompt": "a", "completion": "b"}),
    "pictures/1.png": "",
    "figures/MM.jsonl": "",
    "raw.jsonl": json.dumps({"question": "1 + 1?", "solution": "\\boxed{2}"}),
    "rewrite.txt": "{question} {solution}",
    "prefs.jsonl": json.dumps({"prompt": "p", "chosen": "right", "rejected": "wrong"}),
    "benches/gsm8k.jsonl": json.dumps({"question": "1 + 1?"}),
    "zero.json": "{}",
}


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Recipe:
    folder = tmp_path / "theirs"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "mine.yaml").write_text(RECIPE)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return load_recipe("../theirs/mine.yaml")


def test_every_kind_of_name(recipe, tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    # Rows, and what decides whether they are up to date: the names as the recipe has them.
    chat, figures = recipe.data.sources
    assert local_path(chat, recipe) == str(folder / "rows.jsonl")
    assert chat.find_path(chat.images) == folder / "pictures"
    assert figures.find_path(figures.path) == folder / "figures"
    names = ["system.txt", "chat.jinja", "rows.jsonl", "benchmark gsm8k.jsonl", "pictures", "figures"]
    assert list(_inputs(recipe)) == names
    assert Prompts(recipe).system == "Be brief."
    assert [path.name for path in benchmark_items.benchmark_files(recipe)] == ["gsm8k.jsonl"]
    # The model, its template, a configuration that is handed on.
    assert recipe.model.local_base == str(folder / "my-model")
    monkeypatch.setattr(chat_template, "check_template", lambda *words: None)
    tokenizer = SimpleNamespace(chat_template=None)
    chat_template.fit_tokenizer(tokenizer, recipe.model)
    assert tokenizer.chat_template == FILES["chat.jinja"]
    args = arguments.trainer_arguments(lambda **given: SimpleNamespace(**given), recipe, "sft", folder)
    assert args.deepspeed == str(folder / "zero.json")
    # What is rewritten, and preferences.
    (raw,) = raw_solutions.source_rows(recipe.clean)
    assert raw.gold == "2" and raw_solutions.count_rows(recipe.clean) == 1
    monkeypatch.setattr(existing, "load", lambda recipe, split: [])
    (pair,) = existing.read(recipe, len, tmp_path / "images")
    assert pair["chosen"][0]["content"] == "right" and pair["source_id"] == "prefs.jsonl:1"
    assert "prefs.jsonl" in pairs_stage(recipe).inputs


def test_the_copy_beside_the_recipe_wins_and_hub_ids_stay_what_they_are(recipe, tmp_path):
    (tmp_path / "elsewhere" / "rows.jsonl").write_text("[]")
    source = recipe.data.sources[0]
    (row,) = records(local_path(source, recipe), "train", "data.sources")
    assert row[1]["prompt"] == "a"
    hub = source.model_copy(update={"path": "org/rows"})
    assert local_path(hub, recipe) == "org/rows"
    gone = source.model_copy(update={"path": "zz.parquet"})
    with pytest.raises(UserError, match=r"no file zz\.parquet in .*theirs or .*elsewhere"):
        local_path(gone, recipe)


def test_a_repeated_run_finds_them_too(recipe, tmp_path):
    """The record of a stage holds where the recipe lay; the repetition's recipe lies in its run folder."""
    import yaml

    folder = Path(recipe.run_dir)
    folder.mkdir(parents=True)
    content = recipe.model_dump(mode="json")
    assert content["folders"] == [str(tmp_path / "theirs")]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    again = load_recipe(folder / "recipe.yaml")
    assert again.folders == [str(folder), str(tmp_path / "theirs")]
    assert local_path(again.data.sources[0], again) == str(tmp_path / "theirs" / "rows.jsonl")


def test_a_folder_in_the_place_of_a_file_is_said(tmp_path):
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(UserError, match=r"rows\.csv is a folder, and a file is asked for"):
        files.find_file(tmp_path / "rows.csv")
