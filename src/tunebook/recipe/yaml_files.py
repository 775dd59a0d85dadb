"""YAML as people write it: `2e-4` is a number, `no` is text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tunebook.recipe.errors import UserError

NOT_YAML = (yaml.YAMLError, ValueError, RecursionError, OverflowError)
"""What PyYAML raises: also for a date or a number that does not exist, and for a thousand brackets."""

MOST_KEYS = 20_000
"""Keys of a file whose lines are looked up."""

_BOOL = "tag:yaml.org,2002:bool"
_FLOAT = "tag:yaml.org,2002:float"


def _resolvers_without_bool() -> dict[str, list[Any]]:
    # By the first letter of a value: the tag and the pattern that it must match.
    resolvers = {}
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items():
        resolvers[letter] = [pair for pair in pairs if pair[0] != _BOOL]
    return resolvers


class _Loader(yaml.SafeLoader):
    """Unlike YAML 1.1 it takes 2e-4 for a number (2.0e-4 there) and `no` for text (`eval_strategy: no`)."""

    yaml_implicit_resolvers = _resolvers_without_bool()


_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_value(text: str) -> Any:
    """The value of `--set key=value` or of a variable: YAML, or the text itself."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except NOT_YAML:
        return text


def key_lines(path: Path) -> dict[str, int]:
    """The line of each key in a file of YAML that can be read, by dotted key; list items go by number."""
    lines: dict[str, int] = {}
    waiting: list[tuple[str, Any]] = [("", yaml.compose(path.read_text(encoding="utf-8"), _Loader))]
    # Aliases may make a small file endless. What comes late has no line then, and only messages read it.
    for _ in range(MOST_KEYS):
        if not waiting:
            break
        prefix, node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = f"{prefix}.{key.value}".lstrip(".")
                lines[name] = key.start_mark.line + 1
                waiting.append((name, value))
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                waiting.append((f"{prefix}.{number}", value))
    return lines


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a recipe's file. Raises UserError when it holds none."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except (*NOT_YAML, OSError) as error:
        # The place and not the line itself, which may hold a secret.
        reason = type(error).__name__
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            reason = f"{error.problem}, line {error.problem_mark.line + 1}"
        raise UserError(f"{path} is not readable YAML: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a recipe: expected keys such as `model:` and `data:`")
    return content
