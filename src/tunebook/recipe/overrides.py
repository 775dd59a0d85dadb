"""Values given beside the recipe's file: `--set`, a notebook's `overrides`, `$TUNEBOOK__SECTION__KEY` variables."""

from __future__ import annotations

import os
from typing import Any

from tunebook.recipe.errors import UserError, shorten
from tunebook.recipe.yaml_files import parse_value

ENV_PREFIX = "TUNEBOOK__"


def from_variables() -> dict[str, Any]:
    """Overrides from `$TUNEBOOK__SECTION__KEY` variables, by dotted key."""
    return {
        k[len(ENV_PREFIX) :].lower().replace("__", "."): parse_value(v)
        for k, v in os.environ.items()
        if k.startswith(ENV_PREFIX)
    }


def parse_set(items: list[str]) -> dict[str, Any]:
    """`["dpo.beta=0.2"]` -> `{"dpo.beta": 0.2}`; values are read as YAML.

    Raises UserError for an item without `=`.
    """
    for item in items:
        if "=" not in item:
            raise UserError(
                f"--set {shorten(item)}: write it as key=value, for example --set sft.learning_rate=2e-4"
            )
    return {key.strip(): parse_value(value) for key, value in (item.split("=", 1) for item in items)}


def set_value(content: dict[str, Any], key: str, value: Any) -> Any:
    """Put `value` at a dotted key and return what was there. List items go by number: `data.sources.0.train`."""
    *parents, last = key.split(".")
    node: Any = content
    for part in parents:
        try:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        except (ValueError, IndexError):
            raise UserError(
                f"{shorten(key)}: there is no item {shorten(repr(part))}; this list has {len(node)}"
            ) from None
        if not isinstance(node, dict | list):
            raise UserError(f"{shorten(key)}: {shorten(part)} is a value, not a section")
    if isinstance(node, list):
        raise UserError(f"{shorten(key)}: set a key of one item, for example {'.'.join(parents)}.0.key")
    old = node.get(last)
    node[last] = value
    return old
