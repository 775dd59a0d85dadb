"""A recipe's file laid over what it extends, and where each value comes from.

    extends: qwen3          # configs/defaults/qwen3.yaml, which extends base.yaml
    data: {sources: [{path: my.csv}]}
    sft: {num_train_epochs: 2}

Mappings are merged key by key; lists and values replace what stood there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError, did_you_mean, shorten
from tunebook.recipe.files import ROOT, find_file, shipped
from tunebook.recipe.secrets import check_values
from tunebook.recipe.trainer_keys import DATACLASSES
from tunebook.recipe.yaml_files import key_lines, read_yaml

DEFAULTS = shipped("configs/defaults")
"""The family defaults. Their sections give values and ask for no stage."""

BASE = "base"
"""What a recipe without `extends` extends."""

SECTIONS = ("model", "data", "pairs", "evaluate", "export", *DATACLASSES)
"""Sections that may stand there without a key: `sft:` asks for the stage with the values it extends."""


@dataclass(frozen=True)
class Layer:
    """The content of a recipe's file, laid over what it extends."""

    content: dict[str, Any]
    origins: dict[str, str]
    """The file and line of each value, by its dotted key."""
    named: frozenset[str]
    """The sections that the file, or what it extends other than a family default, names."""
    folders: list[str]
    """Where files that it names are looked for first: its own folder, then those of what it extends. Inside
    the project they are relative to it, so that a manifest is the same on another machine."""


def read_layers(path: Path, way: tuple[Path, ...] = ()) -> Layer:
    """Read a recipe's file and what it extends.

    Args:
        path: The file.
        way: The files that led here by `extends`.

    Raises UserError for a circle, for what cannot be read, and for a secret.
    """
    path = path.resolve()
    if path in way:
        names = " -> ".join(file.name for file in (*way[way.index(path) :], path))
        raise UserError(f"extends goes in a circle: {names}")
    content = read_yaml(path)
    check_values(content)
    lines = key_lines(path)
    for name in SECTIONS:
        if name in content and content[name] is None:
            content[name] = {}
    if "check" in content:
        content["check"] = whole_check(content["check"])

    is_family = path.parent == DEFAULTS
    named = frozenset() if is_family else frozenset(content)
    folders = []
    if not is_family:
        folders = [_from_root(path.parent), *_folders(content)]
    extended = extended_file(path, content)
    content.pop("extends", None)
    below = read_layers(extended, (*way, path)) if extended else Layer({}, {}, frozenset(), [])

    # The name and the run folder are a recipe's own: two recipes in one folder would overwrite each other.
    inherited = {key: value for key, value in below.content.items() if key not in ("name", "run")}
    _drop_weights_of_other_losses(inherited, content)
    merged = _merge(inherited, content)
    origins = {}
    own_keys = set(leaf_keys(content))
    for key in leaf_keys(merged):
        if key in own_keys:
            line = lines.get(key)
            origins[key] = f"{file_label(path)}:{line}" if line else file_label(path)
        else:
            # What `null` has emptied has no line of its own.
            origins[key] = below.origins.get(key, file_label(path))
    return Layer(merged, origins, named | below.named, folders + below.folders)


def whole_check(value: Any) -> Any:
    """The section `check` in full of one of its short forms: a name, a list, or one checker's options.

    `maths` alone is what holds without the section: None.
    """
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, list):
        value = {"checkers": value}
    # `{name: json, schema: person.json, threshold: 1}`: all but the threshold is the checker's own.
    if isinstance(value, dict) and "name" in value:
        options = {key: option for key, option in value.items() if key != "threshold"}
        value = {**value, "checkers": [options]}
        for key in options:
            del value[key]
    if not isinstance(value, dict) or not isinstance(value.get("checkers"), list):
        return value
    # A list may mix names and sections.
    checkers = []
    for item in value["checkers"]:
        checkers.append({"name": item} if isinstance(item, str) else item)
    if checkers == [{"name": "maths"}]:
        return None
    return {**value, "checkers": checkers}


def extended_file(path: Path, content: dict[str, Any]) -> Path | None:
    """The file that a recipe's file extends. None: it stands alone.

    Without the key that is `base`; `extends: null` leaves all that is not said to TRL, PEFT and Unsloth.

    Raises UserError when there is no such family or file.
    """
    name = content.get("extends", BASE)
    if name is None or path == DEFAULTS / f"{BASE}.yaml":
        return None
    if not isinstance(name, str):
        raise UserError(f"{path.name}: extends should be one name or path (it is {shorten(name)})")
    if name.endswith((".yaml", ".yml")):
        return find_file(name, [path.parent])
    # A family first, then a whole recipe.
    for folder in (DEFAULTS, DEFAULTS.parent):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    families = sorted(file.stem for file in DEFAULTS.glob("*.yaml"))
    raise UserError(
        f"{path.name}: extends {shorten(name)}: there is no such family{did_you_mean(name, families)}; "
        f"there are: {', '.join(families)} (or give a path to a .yaml file)"
    )


def leaf_keys(content: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values that hold no further ones: `sft.optim`, `data.sources.0.path`."""
    parts: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        parts = list(content.items())
    elif isinstance(content, list) and any(isinstance(item, dict) for item in content):
        parts = list(enumerate(content))
    if not parts:
        yield prefix
    for name, part in parts:
        yield from leaf_keys(part, f"{prefix}.{name}" if prefix else str(name))


def _merge(below: dict[str, Any], above: dict[str, Any], section: str = "") -> dict[str, Any]:
    """`above` laid over `below`, neither of them changed."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            merged[key] = _merge(below[key], value, section or str(key))
        elif value is None and key in below and section in DATACLASSES:
            # `loss_weights: null` takes an inherited argument away: TRL's own value holds.
            del merged[key]
        else:
            merged[key] = value
    return merged


def _drop_weights_of_other_losses(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Where a file changes DPO's losses alone, the inherited weights, which belong to others, go."""
    own, inherited = above.get("dpo"), below.get("dpo")
    if not isinstance(own, dict) or not isinstance(inherited, dict):
        return
    if own.get("loss_type", inherited.get("loss_type")) != inherited.get("loss_type"):
        below["dpo"] = {key: value for key, value in inherited.items() if key != "loss_weights"}


def _folders(content: dict[str, Any]) -> list[str]:
    """The folders that a file itself names, taken out of its content: a manifest's recipe has some."""
    folders = content.pop("folders", None) or []
    if not isinstance(folders, list) or not all(isinstance(folder, str) for folder in folders):
        raise UserError(f"folders: should be a list of folders (it is {shorten(folders)})")
    return folders


def _from_root(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def file_label(path: Path) -> str:
    """A file as messages name it: from the project or the working folder, where it lies in one."""
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return _from_root(path)
