"""Ten lines of recipe: what it extends, which stages it asks for, where each value comes from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT, find_file
from tunebook.recipe.layers import DEFAULTS, extended_file
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.yaml_files import read_yaml

FROZEN = json.loads((ROOT / "tests" / "helpers" / "shipped_recipes.json").read_text())
"""The values of the shipped recipes before they were short: hundred lines each, nothing inherited."""

FAMILIES = sorted(path.stem for path in DEFAULTS.glob("*.yaml"))

ROWS = "data: {sources: [{format: chat, path: my.csv}]}\n"
MODEL = "model: {base: smollm2-135m-instruct}\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def missing(whole: dict, part: dict) -> list[str]:
    """The keys of `part` that have another value in `whole`, which may have more."""
    keys = []
    for key, value in part.items():
        if isinstance(value, dict) and isinstance(whole.get(key), dict):
            keys += [f"{key}.{name}" for name in missing(whole[key], value)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value):
                keys += [f"{key}.{number}.{name}" for name in missing(whole[key][number], item)]
        elif key not in whole or whole[key] != value:
            keys.append(key)
    return keys


@pytest.mark.parametrize("name", FROZEN)
def test_short_recipes_mean_what_the_long_ones_meant(name, tmp_path):
    resolved = load_recipe(name).model_dump(mode="json")
    assert missing(resolved, FROZEN[name]) == []
    # What a trainer is told is the same to the last key: its stage's key rests on it.
    for section in ("lora", "sft", "dpo"):
        assert resolved[section] == FROZEN[name][section]
    assert resolved["stages"] == ["sft", "pairs", "dpo"]
    # The long recipe still means the same, with and without the line that keeps `base` away.
    long = tmp_path / f"{name}.yaml"
    for first in ("", "extends: null\n"):
        long.write_text(first + yaml.safe_dump(FROZEN[name]))
        again = load_recipe(long).model_dump(mode="json")
        assert again | {"folders": []} == resolved | {"folders": []}


def test_mappings_merge_and_lists_and_values_replace(tmp_path):
    recipe = load_recipe(
        write(
            tmp_path / "own.yaml",
            "extends: smollm2\n"
            + ROWS
            + "sft: {num_train_epochs: 2}\nlora: {target_modules: [q_proj]}\nevaluate: {limit: 5}\n",
        )
    )
    assert recipe.name == "own"
    assert (recipe.sft["num_train_epochs"], recipe.sft["learning_rate"]) == (2, 2e-4)
    assert recipe.sft["save_steps"] == 20 and recipe.sft["gradient_accumulation_steps"] == 1
    assert recipe.lora["target_modules"] == ["q_proj"] and recipe.lora["r"] == 16
    assert (recipe.evaluate.limit, recipe.evaluate.max_new_tokens) == (5, 256)
    assert recipe.model.base == "smollm2-135m-instruct" and recipe.data.system_prompt is None


def test_null_takes_an_inherited_argument_away(tmp_path):
    path = write(
        tmp_path / "r.yaml",
        "extends: smollm2\n" + ROWS + "sft: {num_train_epochs: null}\ndpo:\n  loss_weights: null\n",
    )
    recipe = load_recipe(path)
    assert "num_train_epochs" not in recipe.sft and "loss_weights" not in recipe.dpo
    assert recipe.dpo["loss_type"] == ["sigmoid", "sft"]


def test_weights_of_other_losses_are_not_inherited(tmp_path):
    for losses, weights in (("ipo", None), ("[hinge]", None), ("[hinge, sft]", None)):
        path = write(tmp_path / "r.yaml", f"extends: smollm2\n{ROWS}dpo: {{loss_type: {losses}}}\n")
        assert load_recipe(path).dpo.get("loss_weights") == weights
    path = write(tmp_path / "r.yaml", f"extends: smollm2\n{ROWS}dpo: {{beta: 0.3}}\n")
    assert load_recipe(path).dpo["loss_weights"] == [1.0, 0.2]


def test_without_a_family_the_base_holds_and_never_the_trainers_own_values(tmp_path):
    recipe = load_recipe(write(tmp_path / "r.yaml", MODEL + ROWS))
    assert recipe.sft["learning_rate"] == 2e-4 and recipe.lora["r"] == 16 and recipe.sft["save_steps"] == 20
    assert recipe.dpo["learning_rate"] == 5e-6
    bare = load_recipe(write(tmp_path / "r.yaml", "extends: null\n" + MODEL + ROWS))
    assert bare.sft == bare.lora == bare.dpo == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_says_why_and_fits_any_rows(family, tmp_path):
    path = DEFAULTS / f"{family}.yaml"
    content = read_yaml(path)
    assert "system_prompt" not in content.get("data", {}) and "user_prompt" not in content.get("data", {})
    assert "name" not in content and "sources" not in content.get("data", {})
    model = MODEL if family == "base" else ""
    recipe = load_recipe(write(tmp_path / "mine.yaml", f"extends: {family}\n{model}{ROWS}"))
    assert recipe.stages == ["sft"] and recipe.sft["learning_rate"] == 2e-4 and recipe.lora["r"] == 16
    assert recipe.dpo["beta"] == 0.1 and recipe.sft["save_steps"] <= 20
    if family in ("qwen3", "llama3", "gemma3n"):
        assert recipe.model.load_in_4bit and recipe.sft["optim"] == recipe.dpo["optim"] == "adamw_8bit"
        assert "Not yet run on a GPU" in path.read_text()


def test_a_chain_of_files(tmp_path):
    write(
        tmp_path / "team" / "base.yaml",
        "extends: qwen3\nname: team\nrun: theirs\nsft: {learning_rate: 1e-4}\n",
    )
    write(tmp_path / "mine.yml", "extends: team/base.yaml\nsft: {num_train_epochs: 1}\n" + ROWS)
    recipe = load_recipe(tmp_path / "mine.yml")
    # The name and the run folder are each recipe's own.
    assert (recipe.name, recipe.run) == ("mine", None)
    assert (recipe.sft["learning_rate"], recipe.sft["num_train_epochs"], recipe.sft["optim"]) == (
        1e-4,
        1,
        "adamw_8bit",
    )
    assert recipe.folders == [str(tmp_path), str(tmp_path / "team")]
    whole = load_recipe(write(tmp_path / "w.yaml", "extends: smollm2-math\nsft: {learning_rate: 1e-4}\n"))
    assert whole.dpo == load_recipe().dpo and whole.sft == load_recipe().sft | {"learning_rate": 1e-4}


def test_what_cannot_be_extended_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.yaml", "extends: b.yaml\n" + ROWS)
    write(tmp_path / "b.yaml", "extends: ./c.yaml\n")
    write(tmp_path / "c.yaml", "extends: a.yaml\n")
    with pytest.raises(UserError) as error:
        load_recipe("a.yaml")
    assert str(error.value) == "extends goes in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml"
    for text, message in (
        ("extends: qwen\n", "extends qwen: there is no such family, did you mean qwen3?"),
        ("extends: nowhere.yaml\n", "no file nowhere.yaml"),
        ("extends: [a, b]\n", "extends should be one name or path"),
    ):
        with pytest.raises(UserError, match=message.replace("[", r"\[").replace("?", r"\?")) as error:
            load_recipe(write(tmp_path / "r.yaml", text + ROWS))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="extends can be said in the recipe's file alone"):
        load_recipe(overrides={"extends": "qwen3"})
    # A mistake in another file than the recipe's names it.
    write(tmp_path / "b.yaml", MODEL + "sft:\n  learning_rat: 1\n")
    with pytest.raises(UserError, match=r"unknown key sft\.learning_rat.*learning_rate\? \(in b\.yaml:3\)"):
        load_recipe("a.yaml")


def test_an_alias_bomb_in_what_is_extended(tmp_path):
    write(tmp_path / "bomb.yaml", "sft: &a {x: 1, y: *a}\n")
    with pytest.raises(UserError, match="more than 20000 values"):
        load_recipe(write(tmp_path / "r.yaml", "extends: bomb.yaml\n" + ROWS))


ASKED = [
    # (the sections of the recipe, the stages)
    (ROWS, ["sft"]),
    (ROWS + "sft: {num_train_epochs: 1}\n", ["sft"]),
    (ROWS + "sft:\n", ["sft"]),
    ("pairs: {dataset: p.jsonl}\n", ["pairs", "dpo"]),
    ("pairs: {dataset: p.jsonl}\ndpo: {beta: 0.2}\n", ["pairs", "dpo"]),
    (ROWS + "dpo:\n", ["pairs", "dpo"]),
    (ROWS + "sft:\ndpo:\n", ["sft", "pairs", "dpo"]),
    (ROWS + "sft:\npairs: {dataset: p.jsonl}\n", ["sft", "pairs", "dpo"]),
    (ROWS + "sft:\ndpo:\nstages: [sft]\n", ["sft"]),
    (ROWS + "stages: [dpo]\n", ["pairs", "dpo"]),
    (ROWS + "stages: [dpo, sft]\n", ["sft", "pairs", "dpo"]),
]


@pytest.mark.parametrize(("text", "stages"), ASKED)
def test_the_sections_ask_for_the_stages(text, stages, tmp_path):
    """The family default has lora, sft, dpo, pairs and evaluate, and asks for none of them."""
    assert load_recipe(write(tmp_path / "r.yaml", "extends: smollm2\n" + text)).stages == stages
    # The same from a file in between.
    write(tmp_path / "parent.yaml", "extends: smollm2\n" + text)
    assert load_recipe(write(tmp_path / "child.yaml", "extends: parent.yaml\n")).stages == stages


def test_a_preference_set_alone_is_the_method(tmp_path):
    path = write(tmp_path / "r.yaml", "extends: smollm2\npairs: {dataset: p.jsonl}\n")
    recipe = load_recipe(path)
    assert recipe.pairs.methods == ["dataset"] and recipe.data.sources == []
    both = load_recipe(
        write(path, f"extends: smollm2\n{ROWS}pairs: {{dataset: p.jsonl, methods: [on_policy, dataset]}}\n")
    )
    assert both.pairs.methods == ["on_policy", "dataset"]


def test_overrides_change_values_and_not_the_stages(tmp_path):
    path = write(tmp_path / "r.yaml", "extends: smollm2\n" + ROWS)
    assert load_recipe(path, overrides={"dpo.beta": 0.2}).stages == ["sft"]
    assert load_recipe(path, overrides={"pairs.dataset": "p.jsonl"}).stages == ["sft", "pairs", "dpo"]
    assert load_recipe(overrides={"stages": ["sft"]}).stages == ["sft"]
    with pytest.raises(UserError, match=r"stages.0: should be 'sft', 'pairs' or 'dpo'"):
        load_recipe(overrides={"stages": ["orpo"]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the recipe r names no rows: give it data"),
        ("sft:\n", "data.sources is missing: SFT needs rows, for example `data:"),
        ("data:\nsft:\n", "data.sources is missing: SFT needs rows"),
        ("dpo:\n", "data.sources is missing: pairs.methods on_policy needs rows"),
        ("pairs: {dataset: p.jsonl}\nsft:\n", "data.sources is missing: SFT needs rows"),
        ("pairs: {methods: [injected_error]}\n", "pairs.methods injected_error needs rows"),
    ],
)
def test_a_stage_without_rows_is_told_at_once(text, message, tmp_path):
    with pytest.raises(UserError) as error:
        load_recipe(write(tmp_path / "r.yaml", "extends: smollm2\n" + text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_files_are_found_beside_the_recipe_first(tmp_path, monkeypatch):
    beside, work = tmp_path / "recipes", tmp_path / "work"
    write(work / "other.jsonl", "")
    write(beside / "r.yaml", "extends: smollm2\n" + ROWS)
    for folder in (beside, work):
        write(folder / "my.csv", "a")
    monkeypatch.chdir(work)
    folders = load_recipe("../recipes/r.yaml").folders
    assert find_file("my.csv", folders) == beside / "my.csv"
    assert find_file("my.csv") == work / "my.csv"
    assert find_file("other.jsonl", folders) == work / "other.jsonl"
    assert find_file("prompt/system.txt", folders) == ROOT / "prompt" / "system.txt"
    with pytest.raises(UserError, match=r"no file my\.csw, did you mean my\.csv\?"):
        find_file("my.csw", folders)
    with pytest.raises(UserError) as error:
        find_file("zzz/zzz.parquet", folders)
    assert str(error.value) == f"no file zzz/zzz.parquet in {beside} or {work} or {ROOT}"


def test_the_origin_of_each_value(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "team.yaml", "extends: qwen3\nsft:\n  learning_rate: 1e-4\n")
    write(
        tmp_path / "mine.yaml",
        "extends: team.yaml\ndata:\n  sources:\n    - format: chat\n      path: my.csv\n"
        "sft:\n  optim: adamw_torch\n",
    )
    monkeypatch.setenv("TUNEBOOK__LORA__R", "8")
    origins = load_recipe("mine.yaml", overrides={"dpo.beta": 0.3, "data.sources.0.val": 0.2}).origins
    assert origins["sft.learning_rate"] == "team.yaml:3"
    assert origins["sft.optim"] == "mine.yaml:7"
    assert origins["data.sources.0.path"] == "mine.yaml:5"
    assert origins["data.sources.0.val"] == origins["dpo.beta"] == "override"
    assert origins["lora.r"] == "$TUNEBOOK__LORA__R"
    assert origins["name"] == "the file's name" and origins["stages"] == "asked for by the sections"
    family, _, line = origins["dpo.optim"].partition(":")
    assert family == "configs/defaults/qwen3.yaml"
    assert (ROOT / family).read_text().splitlines()[int(line) - 1].strip() == "optim: adamw_8bit"
    assert "evaluate.samples" not in origins


def test_the_readmes_recipe_is_one(tmp_path):
    (text,) = [
        block.partition("```")[0]
        for block in (ROOT / "README.md").read_text().split("```yaml\n")[1:]
        if block.startswith("extends:")
    ]
    recipe = load_recipe(write(tmp_path / "my recipe.yaml", text))
    assert recipe.name == "my-recipe" and recipe.stages == ["sft"] and len(text.splitlines()) <= 10
    assert recipe.model.base == "unsloth/Qwen3-4B-Instruct-2507" and recipe.sft["learning_rate"] == 2e-4


def test_stages_that_are_set_are_handed_to_the_next_command():
    recipe = load_recipe(overrides={"stages": ["sft"]})
    assert recipe.command("evaluate") == """uv run tunebook evaluate --set 'stages=["sft"]'"""


def test_the_base_extends_nothing():
    assert extended_file(DEFAULTS / "base.yaml", {}) is None
    assert extended_file(DEFAULTS / "qwen3.yaml", {"extends": "base"}) == DEFAULTS / "base.yaml"


def test_a_copied_recipe_needs_no_project_file_of_its_own(tmp_path):
    shutil.copy(ROOT / "configs" / "smollm2-math.yaml", tmp_path / "copy.yaml")
    copy = load_recipe(tmp_path / "copy.yaml")
    assert copy.sft == load_recipe().sft and copy.name == "smollm2-math"
