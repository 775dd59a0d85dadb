"""Read a recipe by name or path, apply overrides, and explain what is wrong in one line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunebook.recipe.asked import asked_stages, check_rows, start_from_whole_model
from tunebook.recipe.errors import UserError, did_you_mean, shorten
from tunebook.recipe.explain import SHORT, explain
from tunebook.recipe.files import ROWS_SUFFIXES, find_file, program, shipped
from tunebook.recipe.idle import warn_of_idle
from tunebook.recipe.layers import leaf_keys, read_layers, whole_check
from tunebook.recipe.overrides import PREFIX, from_environment, section_of, unset
from tunebook.recipe.parameters import check_parameters
from tunebook.recipe.secrets import check_values
from tunebook.recipe.sections import DEFAULT, Recipe
from tunebook.recipe.trainer_keys import DATACLASSES, trainer_section
from tunebook.recipe.trainer_values import check_trainer_values
from tunebook.recipe.yaml_files import parse_value


def load_recipe(
    recipe: str | Path | None = None,
    run: str | None = None,
    overrides: dict[str, Any] | None = None,
    stage: str | None = None,
    seed: int | None = None,
    warn: bool = True,
    **short: Any,
) -> Recipe:
    """Read a recipe by name (`configs/<name>.yaml`) or path and apply overrides.

    Later wins: the file, `$TUNEBOOK__SECTION__KEY` variables, `overrides` with dotted keys, then `run`,
    `seed` and `short` names (`lr`, `epochs`, `max_steps`, `batch_size`) for the section `stage`. None means
    "as the recipe says". `warn` is whether settings that do nothing are named.

    Raises UserError in one line that names the nearest valid key or choice; so it does, in a notebook, for
    a parameter that papermill has set and the notebook does not have.
    """
    check_parameters()
    # 1) the file, laid over what it extends
    source = str(recipe or os.environ.get("TUNEBOOK_RECIPE") or DEFAULT)
    path = _recipe_path(source)
    layers = read_layers(path)
    # A file may be called `my recipe.yaml`, a run folder may not.
    file_name = re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "recipe"
    content = {"name": file_name, **layers.content, "folders": layers.folders}
    origins = {"name": "the file's name", **layers.origins, "folders": "the recipe's place"}
    # 2) what is said beside it
    changes = {}
    for key, (value, origin) in _all_overrides(overrides or {}, run, stage, seed, short).items():
        section, name = section_of(content, key), key.rpartition(".")[2]
        if key == "check":
            value = whole_check(value)
        changes[key] = (section.get(name), value)
        section[name] = value
        _set_origin(origins, key, value, origin)
    # 3) the checks; secrets first, since the others repeat a wrong value
    check_values(content)
    try:
        parsed = Recipe.model_validate(content)
        for title in DATACLASSES:  # also makes types right: "2e-4" becomes a number
            arguments = trainer_section(title).model_validate(getattr(parsed, title))
            setattr(parsed, title, arguments.model_dump(exclude_unset=True))
    except ValidationError as error:
        raise UserError(f"recipe {path.stem}: {explain(error, origins, path)}") from None
    try:
        check_trainer_values(parsed)
    except UserError as error:
        raise UserError(f"recipe {path.stem}: {error}") from None
    origins["extends"] = "each value stands below"
    if not parsed.stages:
        origins["stages"] = "asked for by the sections"
    if parsed.pairs.dataset is not None:
        origins.setdefault("pairs.methods", "as pairs.dataset is named")
    parsed.stages = asked_stages(parsed, layers.named)
    check_rows(parsed)
    if warn:
        warn_of_idle(parsed, origins)
    parsed.place(parsed.folders)
    start_from_whole_model(parsed, origins)
    parsed._overrides = changes
    parsed._source = source
    parsed._origins = origins
    return parsed


def _set_origin(origins: dict[str, str], key: str, value: Any, origin: str) -> None:
    """Note where an overridden value comes from, in place of what stood there."""
    for old in [name for name in origins if name == key or name.startswith(f"{key}.")]:
        del origins[old]
    for leaf in leaf_keys(value, key):
        origins[leaf] = origin


def _all_overrides(
    overrides: dict[str, Any], run: str | None, stage: str | None, seed: int | None, short: dict[str, Any]
) -> dict[str, tuple[Any, str]]:
    """Everything that is said beside the recipe's file, by dotted key: the value, and who says it."""
    if isinstance(overrides, str):  # papermill hands a mapping on as text
        overrides = parse_value(overrides)
    if not isinstance(overrides, dict) or not all(isinstance(key, str) for key in overrides):
        raise UserError(f"overrides: should be {{'section.key': value}} (it is {shorten(overrides)})")
    unknown = sorted(short.keys() - SHORT.keys())
    if unknown:
        hint = did_you_mean(unknown[0], [*SHORT, "seed", "run", "recipe"])
        raise UserError(f"{unknown[0]!r} is not a short name{hint}")
    values = {}
    for key, value in from_environment().items():
        values[key] = (value, f"${PREFIX}{key.upper().replace('.', '__')}")
    for key, value in overrides.items():
        values[key] = (value, "override")
    for name, value in short.items():
        if unset(value) is not None:  # a notebook's parameter that nobody has set
            values[f"{stage}.{SHORT[name]}"] = (value, "override")
    if unset(run) is not None:
        # papermill makes a number of `2024`, YAML a date of `2024-05-01`
        values["run"] = (str(run), "override")
    elif os.environ.get("TUNEBOOK_RUN"):
        values["run"] = (os.environ["TUNEBOOK_RUN"], "$TUNEBOOK_RUN")
    if unset(seed) is not None:
        values["seed"] = (seed, "override")
    for key in ("extends", "folders"):
        if key in values:
            raise UserError(f"{key} can be said in the recipe's file alone")
    return values


def _recipe_path(source: str) -> Path:
    if source.endswith((".yaml", ".yml")):
        return find_file(source)
    names = sorted(path.stem for path in shipped("configs").glob("*.yaml"))
    if Path(source).suffix in ROWS_SUFFIXES:
        raise UserError(
            f"{shorten(source)} is no recipe: `{program()} init {shorten(source)}` writes one for it"
        )
    if source not in names and Path(source).is_dir():
        files = ", ".join(sorted(map(str, Path(source).glob("*.y*ml"))))
        raise UserError(f"{source} is a folder: give a .yaml file in it (there is {files or 'none'})")
    if source not in names:
        raise UserError(
            f"no recipe {shorten(repr(source))}{did_you_mean(source, names)}; "
            f"there are: {', '.join(names)} (or give a path to a .yaml file)"
        )
    return shipped("configs") / f"{source}.yaml"
