"""`tunebook recipe show` and `tunebook recipe schema`: the whole recipe, and what editors know of it."""

from __future__ import annotations

import json

import jsonschema
import pytest

from tunebook import cli
from tunebook.recipe.files import ROOT
from tunebook.recipe.layers import DEFAULTS, leaf_keys
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.schema import recipe_schema
from tunebook.recipe.show import shown
from tunebook.recipe.yaml_files import read_yaml

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
FILES = [*RECIPES, *sorted(DEFAULTS.glob("*.yaml"))]
SCHEMA = ROOT / "configs" / "recipe.schema.json"


def run(monkeypatch, capsys, *words: str) -> str:
    monkeypatch.setattr("sys.argv", ["tunebook", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_is_shown_reads_back_to_the_same_recipe(path, tmp_path):
    recipe = load_recipe(path)
    text = shown(recipe)
    copy = tmp_path / "copy.yaml"
    copy.write_text(text)
    again = load_recipe(copy)
    assert again.model_dump(exclude={"folders"}) == recipe.model_dump(exclude={"folders"})
    # A line for each value, and on each where it comes from.
    assert text.count(" # ") >= len(list(leaf_keys(recipe.model_dump(mode="json"))))


def test_the_command_names_file_line_override_and_variable(monkeypatch, capsys):
    monkeypatch.setenv("TUNEBOOK__LORA__R", "8")
    out = run(monkeypatch, capsys, "recipe", "show", "-r", "smollm2-alpaca", "--set", "dpo.beta=0.3")
    origins = {}
    for line in out.splitlines():
        value, _, origin = line.partition(" # ")
        origins[value.strip()] = origin
    assert origins["beta: 0.3"] == "override" and origins["r: 8"] == "$TUNEBOOK__LORA__R"
    assert origins["share_prompts: true"] == "default"
    assert origins["methods: [dataset]"] == "as pairs.dataset is named"
    # The line that is named holds the value.
    for value in ("learning_rate: 0.0002", "min_margin: 2.0", "base: smollm2-135m-instruct"):
        file, _, number = origins[value].partition(":")
        key = value.partition(":")[0]
        assert (ROOT / file).read_text().splitlines()[int(number) - 1].strip().startswith(f"{key}:")


def test_a_secret_is_not_shown(monkeypatch):
    """Recipes with secrets are refused; one that becomes known only afterwards is scrubbed all the same."""
    recipe = load_recipe(overrides={"export.hub_id": "me/my-hidden-word-1"})
    monkeypatch.setenv("MY_TOKEN", "my-hidden-word-1")
    assert "my-hidden-word-1" not in shown(recipe) and "hub_id: me/***" in shown(recipe)


def test_the_schema_in_the_project_is_what_the_command_prints(monkeypatch, capsys):
    printed = run(monkeypatch, capsys, "recipe", "schema")
    assert SCHEMA.read_text() == printed, (
        "sections have changed: uv run tunebook recipe schema > configs/recipe.schema.json"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_names_the_schema_and_fits_it(path):
    name = path.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / name).resolve() == SCHEMA
    jsonschema.validate(read_yaml(path), json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize(
    "content",
    [
        {"sft": {"lerning_rate": 1e-4}},
        {"sft": {"learning_rate": "fast"}},
        {"model": {"max_seq_length": 3}},
        {"data": {"sources": [{"format": "chat"}]}},
        {"stages": ["orpo"]},
        {"dop": {}},
    ],
)
def test_the_schema_sees_what_the_recipe_refuses(content):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, recipe_schema())


def test_the_schema_explains_the_keys():
    schema = recipe_schema()
    sections = schema["properties"]
    rate = sections["sft"]["anyOf"][0]["properties"]["learning_rate"]
    assert "learning rate" in rate["description"] and {"type": "null"} in rate["anyOf"]
    assert "never cut" in schema["$defs"]["ModelConfig"]["properties"]["max_seq_length"]["description"]
    assert "required" not in schema and "required" not in schema["$defs"]["ModelConfig"]
    # The values of a trainer's section are all explained: TRL's, transformers' and PEFT's own help.
    for section in ("sft", "dpo", "lora"):
        properties = sections[section]["anyOf"][0]["properties"]
        silent = [key for key, value in properties.items() if not value.get("description")]
        assert len(silent) <= 6, silent  # Unsloth's and early stopping's
