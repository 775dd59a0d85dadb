"""What a recipe asks for: the stages that its sections name, and rows for them."""

from __future__ import annotations

import typing
from collections.abc import Container

from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe, StageName


def asked_stages(recipe: Recipe, named: Container[str]) -> list[StageName]:
    """The stages that a recipe asks for, in their order.

    - `stages` says it, where it is given; DPO brings its pairs.
    - Else the sections that the recipe names: `sft` asks for SFT; `pairs` or `dpo` ask for pairs and DPO.
    - Where it names none of the three: SFT if there are data sources, pairs and DPO if there is a
      `pairs.dataset`.

    Args:
        recipe: As it was read, with its family's values.
        named: The sections that its own file names, or what that extends; those of a family default do not
            count.
    """
    asked = set(recipe.stages)
    if not asked:
        if "sft" in named:
            asked.add("sft")
        if "pairs" in named or "dpo" in named:
            asked.add("dpo")
    if not asked:
        if recipe.data.sources:
            asked.add("sft")
        if recipe.pairs.dataset is not None:
            asked.add("dpo")
    if "dpo" in asked:
        asked.add("pairs")
    return [name for name in typing.get_args(StageName) if name in asked]


def start_from_whole_model(recipe: Recipe, origins: dict[str, str]) -> None:
    """Where `dpo.start` names a folder with a whole model, and no adapter, make that the base model.

    Of a hub id it is not known before it is fetched, and then an error says so.

    Raises UserError where SFT would train on another model.
    """
    start = recipe.dpo.get("start")
    if start in (None, "sft", "base"):
        return
    place = recipe.find_path(str(start))
    if (place / "adapter_config.json").is_file() or not (place / "config.json").is_file():
        return
    if "sft" in recipe.stages:
        raise UserError(
            f"dpo.start: {start} is a whole model, and SFT would train {recipe.model.base}: "
            "name it as model.base, and let DPO start from `sft`"
        )
    recipe.model.base = str(start)
    recipe.dpo["start"] = "base"
    origins["model.base"] = "dpo.start is a whole model"


def check_rows(recipe: Recipe) -> None:
    """Raises UserError when a stage that the recipe asks for has no rows to work on."""
    if recipe.data.sources:
        return
    if "dpo" in recipe.stages and recipe.dpo.get("start") == "sft":
        raise UserError(
            "dpo.start: sft needs an SFT in this run, and data.sources is missing: give it rows, or name an "
            "adapter (a folder or hub id) or `base` in dpo.start"
        )
    example = "`data: {sources: [{path: my.csv}]}`"
    if not recipe.stages:
        raise UserError(
            f"the recipe {recipe.name} names no rows: "
            f"give it data ({example}) or preference pairs (`pairs: {{dataset: my.jsonl}}`)"
        )
    if "sft" in recipe.stages:
        raise UserError(f"data.sources is missing: SFT needs rows, for example {example}")
    others = [method for method in recipe.pairs.methods if method != "dataset"]
    if others:
        raise UserError(
            f"data.sources is missing: pairs.methods {others[0]} needs rows ({example}), "
            "or name a preference set in pairs.dataset"
        )
