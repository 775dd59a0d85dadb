"""The whole resolved recipe as YAML, each value with where it comes from.

uv run tunebook recipe show --recipe smollm2-math
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from tunebook.recipe.secrets import SECRET_NAME, scrubbed, set_variables
from tunebook.recipe.sections import Recipe

WIDTH = 56
"""Where the comments begin, unless a value reaches further."""


def shown(recipe: Recipe, *sections: str) -> str:
    """The recipe as YAML that reads back to the same values. A comment on each line says where it comes from:
    a file and line, a variable, an override, or the default of its section.

    Args:
        recipe: The recipe.
        sections: Only these of its sections (`model`, `sft`); by default all.

    Keys of `lora`, `sft` and `dpo` that nobody names are PEFT's and TRL's own, and are not listed.
    """
    lines = []
    content = recipe.model_dump(mode="json", include=set(sections) if sections else None)
    for text, origin in _lines(content, recipe.origins):
        lines.append(f"{text:{WIDTH}} # {origin}" if origin else text)
    secrets = [value for name, value in set_variables().items() if SECRET_NAME.search(name)]
    return scrubbed("\n".join(lines) + "\n", *secrets)


def as_call(name: str, arguments: dict[str, Any]) -> str:
    """How a call with keyword arguments is written in Python, a line for each."""
    lines = [f"{name}("]
    for key, value in arguments.items():
        text = str(value) if str(value).startswith("torch.") else repr(value)
        lines.append(f"    {key}={text},")
    return "\n".join([*lines, ")"])


def _lines(
    section: dict[str, Any], origins: dict[str, str], prefix: str = "", indent: str = ""
) -> Iterator[tuple[str, str]]:
    """The lines of a section, and the origin of the value on each; none where further lines follow."""
    for name, value in section.items():
        key = f"{prefix}{name}"
        start = f"{indent}{_yaml(name)}:"
        if isinstance(value, dict) and value:
            yield start, ""
            yield from _lines(value, origins, f"{key}.", f"{indent}  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield start, ""
            for number, item in enumerate(value):
                lines = _lines(item, origins, f"{key}.{number}.", f"{indent}    ")
                for position, (text, origin) in enumerate(lines):
                    # The first line of an item carries its dash.
                    yield (f"{indent}  - {text.lstrip()}" if position == 0 else text), origin
        else:
            yield f"{start} {_yaml(value)}", origins.get(key, "default")


def _yaml(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()
