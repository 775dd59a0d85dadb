"""Read a recipe by name or path, apply overrides, and explain what is wrong in one line."""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tunebook.recipe.errors import UserError, did_you_mean, shorten
from tunebook.recipe.files import ROOT, find_file
from tunebook.recipe.overrides import from_environment, section_of
from tunebook.recipe.secrets import check_values
from tunebook.recipe.sections import DEFAULT, Recipe, Section
from tunebook.recipe.trainer_keys import DATACLASSES, trainer_section
from tunebook.recipe.yaml_files import read_yaml

SHORT = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "batch_size": "per_device_train_batch_size",
}
"""Short names that people type with papermill, and the trainer argument each stands for."""

_FORMATS = ("geometry", "mm_math", "chat", "alpaca", "sharegpt", "gsm8k")
"""Parts of a key in pydantic's errors that stand in no recipe: which kind of source it took an item for."""


def load_recipe(
    recipe: str | Path | None = None,
    run: str | None = None,
    overrides: dict[str, Any] | None = None,
    stage: str | None = None,
    seed: int | None = None,
    **short: Any,
) -> Recipe:
    """Read a recipe by name (`configs/<name>.yaml`) or path and apply overrides.

    Later wins: the file, `$TUNEBOOK__SECTION__KEY` variables, `overrides` with dotted keys, then `run`,
    `seed` and `short` names (`lr`, `epochs`, `max_steps`, `batch_size`) for the section `stage`. None means
    "as the recipe says".

    Raises UserError in one line that names the nearest valid key or choice.
    """
    # 1) the file
    source = str(recipe or os.environ.get("TUNEBOOK_RECIPE") or DEFAULT)
    path = _recipe_path(source)
    content = read_yaml(path)
    # 2) what is said beside it
    changes = {}
    for key, value in _all_overrides(overrides or {}, run, stage, seed, short).items():
        section, name = section_of(content, key), key.rpartition(".")[2]
        changes[key] = (section.get(name), value)
        section[name] = value
    # 3) the checks; secrets first, since the others repeat a wrong value
    check_values(content)
    try:
        parsed = Recipe.model_validate(content)
        for title in DATACLASSES:  # also makes types right: "2e-4" becomes a number
            arguments = trainer_section(title).model_validate(getattr(parsed, title))
            setattr(parsed, title, arguments.model_dump(exclude_unset=True))
    except ValidationError as error:
        raise UserError(f"recipe {path.stem}: {_explain(error)}") from None
    parsed._overrides = changes
    parsed._source = source
    return parsed


def _all_overrides(
    overrides: dict[str, Any], run: str | None, stage: str | None, seed: int | None, short: dict[str, Any]
) -> dict[str, Any]:
    """Everything that is said beside the recipe's file, by dotted key."""
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
        raise UserError(f"overrides: should be {{'section.key': value}} (it is {shorten(overrides)})")
    unknown = sorted(short.keys() - SHORT.keys())
    if unknown:
        hint = did_you_mean(unknown[0], [*SHORT, "seed", "run", "recipe"])
        raise UserError(f"{unknown[0]!r} is not a short name{hint}")
    merged = from_environment()
    merged.update(overrides)
    for name, value in short.items():
        if value is not None:  # a notebook's parameter that nobody has set
            merged[f"{stage}.{SHORT[name]}"] = value
    run = run or os.environ.get("TUNEBOOK_RUN")
    if run is not None:
        merged["run"] = run
    if seed is not None:
        merged["seed"] = seed
    return merged


def _recipe_path(source: str) -> Path:
    if source.endswith((".yaml", ".yml")):
        return find_file(source)
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    if source not in names:
        raise UserError(
            f"no recipe {shorten(repr(source))}{did_you_mean(source, names)}; "
            f"there are: {', '.join(names)} (or give a path to a .yaml file)"
        )
    return ROOT / "configs" / f"{source}.yaml"


def _explain(error: ValidationError) -> str:
    """The first validation error in one line, with the nearest known key for an unknown one."""
    first = error.errors()[0]  # the others often follow from it
    parts = [str(part) for part in first["loc"] if part not in _FORMATS]
    if error.title in DATACLASSES:
        parts.insert(0, error.title)
    key = ".".join(parts)
    if first["type"] == "extra_forbidden":
        hint = _belongs_to(key) or did_you_mean(parts[-1], _known_keys(parts))
        return f"unknown key {shorten(key)}{hint}"
    if first["type"] == "missing":
        return f"{shorten(key)} is missing"
    if key.endswith("api_key_env"):  # most likely the key itself
        return f"{key}: should be the name of a variable such as OPENAI_API_KEY"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    message = " ".join(message.split())
    if not parts:
        return message
    return f"{shorten(key)}: {message} (it is {shorten(first['input'])})"


def _belongs_to(key: str) -> str:
    """Where a key belongs that stands without its section: `learning_rate`, or by its short name `lr`."""
    name = SHORT.get(key, key)
    places = []
    for section, field in Recipe.model_fields.items():
        if name in _keys_of_section(section, field.annotation):
            places.append(f"{section}.{name}")
    return f", did you mean {' or '.join(places)}?" if places else ""


def _keys_of_section(section: str, annotation: Any) -> list[str]:
    if section in DATACLASSES:
        return list(trainer_section(section).model_fields)
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return list(annotation.model_fields)
    return []


def _known_keys(parts: list[str]) -> list[str]:
    """The keys of the section that a key points into; of all kinds of source where it points into one."""
    if parts[0] in DATACLASSES:
        return list(trainer_section(parts[0]).model_fields)
    models: list[type[BaseModel]] = [Recipe]
    for part in parts[:-1]:
        inner = []
        for model in models:
            if part in model.model_fields:
                inner += _models_in(model.model_fields[part].annotation)
        models = inner or models  # the number of a list's item leads no further
    names: set[str] = set()
    for model in models:
        names.update(model.model_fields)
    return sorted(names)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections in a type such as `ServerConfig | None` or `list[GateRule]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    models = []
    for part in typing.get_args(annotation):
        models += _models_in(part)
    return models
