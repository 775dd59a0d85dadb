"""The JSON schema of a recipe, with which an editor completes and explains keys.

    uv run tunebook recipe schema > configs/recipe.schema.json

A recipe names it in its first line: `# yaml-language-server: $schema=recipe.schema.json`.
"""

from __future__ import annotations

from typing import Any

from tunebook.recipe.layers import SECTIONS
from tunebook.recipe.sections import Recipe
from tunebook.recipe.trainer_keys import DATACLASSES, trainer_section

IN_LISTS = ("GeometrySource", "InstructionsSource", "ChatSource", "MMMathSource", "CheckerConfig", "GateRule")
"""Items of lists, which are never merged: what they require must stand in the file itself."""


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe's file: the sections declared here, and those that are handed on.

    No key of a section is required in a file: it may come from what the file extends.
    """
    schema: dict[str, Any] = _without_titles(Recipe.model_json_schema())
    properties = schema["properties"]
    for name in DATACLASSES:
        properties[name] = _trainer_schema(name) | {"description": properties[name]["description"]}
    properties["check"]["anyOf"] += _short_checks(schema["$defs"]["CheckerConfig"])
    for name in SECTIONS:
        properties[name] = _or_null(properties[name])
    schema.pop("required", None)
    for name, definition in schema["$defs"].items():
        if name not in IN_LISTS:
            definition.pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _short_checks(checker: dict[str, Any]) -> list[dict[str, Any]]:
    """The short forms of `check`: a name, one checker with its options, a list."""
    item = {"$ref": "#/$defs/CheckerConfig"}
    options = {**checker["properties"], "threshold": {"type": "number"}}
    return [
        {"type": "string"},
        {"type": "object", "properties": options, "required": ["name"], "additionalProperties": False},
        {"type": "array", "items": {"anyOf": [{"type": "string"}, item]}, "minItems": 1},
    ]


def _trainer_schema(section: str) -> dict[str, Any]:
    """The schema of `lora`, `sft` or `dpo`, with the help texts of PEFT, transformers and TRL."""
    schema: dict[str, Any] = _without_titles(trainer_section(section).model_json_schema())
    for key, value in schema["properties"].items():
        value.pop("default", None)  # ours, which only says that the key may be left out
        schema["properties"][key] = _or_null(value)
    return schema


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The same or `null`, which takes an inherited argument away or leaves a section to its defaults."""
    description = schema.pop("description", None)
    choice: dict[str, Any] = {"anyOf": [schema, {"type": "null"}]}
    if description:
        choice["description"] = description
    return choice


def _without_titles(node: Any) -> Any:
    """The schema without pydantic's titles, which repeat the names."""
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        # A key of a recipe that is called `title` would hold a schema and not a text.
        if key != "title" or not isinstance(value, str):
            kept[key] = _without_titles(value)
    return kept
