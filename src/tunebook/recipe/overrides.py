"""Values beside the recipe's file: `--set`, a notebook's `overrides`, `$TUNEBOOK__SECTION__KEY` variables."""

from __future__ import annotations

import json
import os
from typing import Any

from tunebook.recipe.errors import UserError, shorten
from tunebook.recipe.yaml_files import parse_value

PREFIX = "TUNEBOOK__"

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
NOTHING = ("none", "null", "")
"""What people type; papermill hands on as text all but `True`, `False`, `None` and numbers."""


def from_environment() -> dict[str, Any]:
    """Overrides from `$TUNEBOOK__SECTION__KEY` variables, by dotted key."""
    overrides = {}
    for name, text in os.environ.items():
        if name.startswith(PREFIX):
            key = name.removeprefix(PREFIX).lower().replace("__", ".")
            overrides[key] = parse_value(text)
    return overrides


def switch(name: str, value: Any, default: bool = False) -> bool:
    """A notebook's parameter that is on or off, as people type it: `-p force false` is off.

    Raises UserError for anything that says neither.
    """
    text = str(value).strip().lower()
    if text in NOTHING:
        return default
    if text not in YES + NO:
        raise UserError(f"{name}: should be true or false (it is {shorten(value)})")
    return text in YES


def unset(value: Any) -> Any:
    """A notebook's parameter with `none` and `null` taken for what they say."""
    if isinstance(value, str) and value.strip().lower() in NOTHING:
        return None
    return value


def parse_set(items: list[str]) -> dict[str, Any]:
    """`["dpo.beta=0.2"]` -> `{"dpo.beta": 0.2}`; values are read as YAML.

    Raises UserError for an item without `=`.
    """
    overrides = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(
                f"--set {shorten(item)}: write it as key=value, for example --set sft.learning_rate=2e-4"
            )
        overrides[key.strip()] = parse_value(text)
    return overrides


def as_options(overrides: dict[str, Any]) -> list[str]:
    """`{"dpo.beta": 0.2}` -> `["--set", "dpo.beta=0.2"]`: what `parse_set` reads as the same."""
    options = []
    for key, value in overrides.items():
        text = value if isinstance(value, str) else json.dumps(value)
        options += ["--set", f"{key}={text}"]
    return options


def section_of(content: dict[str, Any], key: str) -> dict[str, Any]:
    """The section of a recipe's content that holds a dotted key, made where it is missing.

    List items go by number: `data.sources.0.train`. Raises UserError for a way that leads nowhere.
    """
    *parents, _ = key.split(".")
    # Down the key's parts, from section to section or to a list's item.
    node: Any = content
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:  # `judge: null` is a section that is not there
            node[part] = {}
        try:
            node = node[int(part)] if isinstance(node, list) else node[part]
        except (ValueError, IndexError):
            raise UserError(
                f"{shorten(key)}: there is no item {shorten(repr(part))}; this list has {len(node)}"
            ) from None
        if not isinstance(node, dict | list):
            raise UserError(f"{shorten(key)}: {shorten(part)} is a value, not a section")
    if isinstance(node, list):
        raise UserError(f"{shorten(key)}: set a key of one item, for example {'.'.join(parents)}.0.key")
    section: dict[str, Any] = node
    return section
