"""YAML as people write it: `2e-4` is a number, `no` is text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tunebook.recipe.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 2e-4 is a number (YAML 1.1 wants 2.0e-4), `no` is text (`eval_strategy: no`)."""


_BOOL = "tag:yaml.org,2002:bool"


_Loader.yaml_implicit_resolvers = {
    k: [r for r in v if r[0] != _BOOL] for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|false|False)$"), list("tTfF"))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


_NO_YAML = (yaml.YAMLError, ValueError, RecursionError, OverflowError)
"""What PyYAML raises: also for a date or a number that there is not, and for a thousand brackets."""


def parse_value(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except _NO_YAML:
        return text


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except (*_NO_YAML, OSError) as error:
        mark = getattr(error, "problem_mark", None)  # not the line itself: it may hold a secret
        why = f"{getattr(error, 'problem', None)}, line {mark.line + 1}" if mark else type(error).__name__
        raise UserError(f"{path} is not readable YAML: {why}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a recipe: expected keys such as `model:` and `data:`")
    return content
