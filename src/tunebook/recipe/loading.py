"""Read a recipe by name or path, apply overrides, and explain what is wrong in one line."""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from tunebook.recipe.errors import UserError, did_you_mean, shorten
from tunebook.recipe.files import ROOT, find_file
from tunebook.recipe.overrides import from_variables, set_value
from tunebook.recipe.secrets import check_values
from tunebook.recipe.sections import DEFAULT, Recipe, Section
from tunebook.recipe.trainer_keys import DATACLASSES, trainer_section
from tunebook.recipe.yaml_files import read_yaml

TrainedSection = Literal["sft", "dpo"]


SHORT = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "batch_size": "per_device_train_batch_size",
}
"""Short names that people type with papermill, and the trainer argument each stands for."""


def load_recipe(
    recipe: str | Path | None = None,
    run: str | None = None,
    overrides: dict[str, Any] | None = None,
    stage: TrainedSection | None = None,
    seed: int | None = None,
    **short: Any,
) -> Recipe:
    """Read a recipe by name (`configs/<name>.yaml`) or path and apply overrides.

    Later wins: the file, `$TUNEBOOK__SECTION__KEY` variables, `overrides` with dotted keys, then `run`, `seed` and
    `short` names (`lr`, `epochs`, `max_steps`, `batch_size`) for the section `stage`; None means "as the recipe says".

    Raises UserError in one line that names the nearest valid key or choice.
    """
    name = str(recipe or os.environ.get("TUNEBOOK_RECIPE") or DEFAULT)
    path = _recipe_path(name)
    content = read_yaml(path)
    if not isinstance(overrides or {}, dict) or not all(isinstance(key, str) for key in overrides or {}):
        raise UserError(f"overrides: should be {{'section.key': value}} (it is {shorten(overrides)})")
    given = from_variables() | (overrides or {})
    if unknown := sorted(short.keys() - SHORT.keys()):
        raise UserError(
            f"{unknown[0]!r} is not a short name{did_you_mean(unknown[0], [*SHORT, 'seed', 'run', 'recipe'])}"
        )
    given |= {f"{stage}.{SHORT[k]}": v for k, v in short.items() if v is not None}
    given |= {
        k: v for k, v in {"run": run or os.environ.get("TUNEBOOK_RUN"), "seed": seed}.items() if v is not None
    }
    changes = {key: (set_value(content, key, value), value) for key, value in given.items()}
    check_values(content)
    try:
        parsed = Recipe.model_validate(content)
        for section in DATACLASSES:  # also makes types right: "2e-4" becomes a number
            values = (
                trainer_section(section)
                .model_validate(getattr(parsed, section))
                .model_dump(exclude_unset=True)
            )
            setattr(parsed, section, values)
    except ValidationError as error:
        raise UserError(f"recipe {path.stem}: {_explain(error)}") from None
    parsed._overrides, parsed._given = changes, name
    return parsed


def _recipe_path(recipe: str) -> Path:
    if recipe.endswith((".yaml", ".yml")):
        return find_file(recipe)
    names = sorted(p.stem for p in (ROOT / "configs").glob("*.yaml"))
    if recipe not in names:
        raise UserError(
            f"no recipe {shorten(repr(recipe))}{did_you_mean(recipe, names)}; there are: {', '.join(names)} (or give a path to a .yaml file)"
        )
    return ROOT / "configs" / f"{recipe}.yaml"


def _explain(error: ValidationError) -> str:
    """The first validation error in one line, with the nearest known key for an unknown one."""
    first = error.errors()[0]
    loc = [
        str(p)
        for p in first["loc"]
        if p not in ("geometry", "mm_math", "chat", "alpaca", "sharegpt", "gsm8k")
    ]
    loc = [error.title, *loc] if error.title in DATACLASSES else loc
    key = ".".join(loc)
    if first["type"] == "extra_forbidden":
        return f"unknown key {shorten(key)}{_in_a_section(key) or did_you_mean(loc[-1], _known_keys(loc))}"
    if first["type"] == "missing":
        return f"{shorten(key)} is missing"
    message = " ".join(
        first["msg"].removeprefix("Value error, ").replace("Input should be", "should be").split()
    )
    if key.endswith("api_key_env"):  # most likely the key itself
        return f"{key}: should be the name of a variable such as OPENAI_API_KEY"
    return f"{shorten(key)}: {message} (it is {shorten(first['input'])})" if loc else message


def _in_a_section(key: str) -> str:
    """Where a key belongs that was given without its section: `learning_rate`, or by its short name `lr`."""
    name = SHORT.get(key, key)
    found = [
        f"{s}.{name}" for s, field in Recipe.model_fields.items() if name in _fields(s, field.annotation)
    ]
    return f", did you mean {' or '.join(found)}?" if found else ""


def _fields(section: str, kind: Any) -> typing.Iterable[str]:
    if section in DATACLASSES:
        return trainer_section(section).model_fields
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else ()


def _known_keys(loc: list[str]) -> list[str]:
    """The keys of the section that `loc` points into."""
    if loc[0] in DATACLASSES:
        return list(trainer_section(loc[0]).model_fields)
    models: list[type[BaseModel]] = [Recipe]
    for part in loc[:-1]:
        models = [
            m
            for model in models
            if part in model.model_fields
            for m in _models(model.model_fields[part].annotation)
        ] or models
    return sorted({name for model in models for name in model.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections in a type such as `ServerConfig | None` or `list[GateRule]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]
