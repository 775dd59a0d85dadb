"""Write the generated pages of the docs: recipe reference, commands, records, notebooks; copy their figures.

    uv run python scripts/docs_pages.py      # `make docs` does it, and builds the site

They are not kept in git: they say again what the sections, the commands and resources/ say.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import typer.main

from tunebook.cli import app
from tunebook.recipe.schema import recipe_schema
from tunebook.recipe.trainer_keys import DATACLASSES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = ROOT / "resources" / "notebooks"
"""Executed ones, as pages: `scripts/notebook_pages.py`."""
RECORDS = ("results", "reliability", "speed")

# Sections in the order of a run, and what comes in lists.
LISTS = {
    "ChatSource": "an item of `data.sources`: rows of files or of the Hub",
    "GeometrySource": "an item of `data.sources`: the project's own problems",
    "InstructionsSource": "an item of `data.sources`: the project's own writing tasks",
    "MMMathSource": "an item of `data.sources`: questions with a figure",
    "CheckerConfig": "an item of `check.checkers`",
    "GateRule": "an item of `evaluate.gate`",
}


def recipe_page() -> str:
    """The reference of all keys of a recipe, from the sections' own docstrings."""
    schema = recipe_schema()
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in schema["properties"].items():
        section = _section(value, schema)
        if section is None:
            top[key] = value
        else:
            sections[key] = section
    lines = [
        "# Recipe reference",
        "",
        "Generated from the sections in `src/tunebook/recipe/sections.py`, and for `lora`, `sft` and `dpo` "
        "from the installed PEFT, transformers and TRL. How recipes work: [recipes](../recipes.md). "
        "The values of the family defaults: `uv run tunebook recipe show`.",
        "",
        "## Top level",
        "",
        *_table(top, schema),
    ]
    for name, section in sections.items():
        lines += ["", f"## `{name}`", "", section.get("description", ""), ""]
        if name in DATACLASSES:
            lines += ["Without a value here the family default holds, then the library's own value.", ""]
        lines += _table(section["properties"], schema)
    for name, what in LISTS.items():
        lines += ["", f"## {name}", "", f"{what[0].upper()}{what[1:]}.", ""]
        lines += _table(schema["$defs"][name]["properties"], schema)
    nested = {
        "data.own_answers": "OwnAnswersConfig",
        "pairs.server": "ServerConfig",
        "evaluate.benchmarks": "BenchmarksConfig",
    }
    for key, name in nested.items():
        lines += ["", f"## `{key}`", "", schema["$defs"][name].get("description", ""), ""]
        lines += _table(schema["$defs"][name]["properties"], schema)
    return "\n".join(lines) + "\n"


def _section(value: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of a section with keys of its own; None of a plain key."""
    for choice in [value, *value.get("anyOf", [])]:
        resolved = _resolved(choice, schema)
        if "properties" in resolved:
            return {**resolved, "description": value.get("description") or resolved.get("description", "")}
    return None


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """What a `$ref` names."""
    reference = node.get("$ref", "").rpartition("/")[2]
    definition: dict[str, Any] = schema["$defs"][reference] if reference else node
    return definition


def _table(properties: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """The rows of a table of keys: name, type, default, explanation."""
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for key, value in properties.items():
        default = ""
        if "default" in value:
            default = f"`{json.dumps(value['default'], ensure_ascii=False)}`"
            if isinstance(value["default"], dict) and value["default"]:
                default = "below"
        cells = (f"`{key}`", f"`{_type(value, schema)}`", default, value.get("description", ""))
        lines.append(f"| {' | '.join(_cell(text) for text in cells)} |")
    return lines


def _cell(text: str) -> str:
    """A text for a table's cell: one line, its bars escaped, nothing taken for HTML."""
    line = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"<(?=[^`]*(?:`[^`]*`[^`]*)*$)", "&lt;", line)


def _type(value: dict[str, Any], schema: dict[str, Any]) -> str:
    """A schema's type as a reader says it."""
    if "anyOf" in value or "oneOf" in value:
        kinds: list[str] = []
        for choice in value.get("anyOf", []) + value.get("oneOf", []):
            for kind in _type(choice, schema).split(" or "):  # a choice may have choices itself
                if kind not in kinds:
                    kinds.append(kind)
        return " or ".join(kinds)
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return name if "properties" in schema["$defs"][name] else _type(schema["$defs"][name], schema)
    if "enum" in value or "const" in value:
        return " or ".join(str(choice) for choice in value.get("enum", [value.get("const")]))
    kind = value.get("type", "any")
    if kind == "array":
        return f"list of {_type(value.get('items', {}), schema)}"
    limits = []
    for key, sign in (
        ("minimum", ">="),
        ("exclusiveMinimum", ">"),
        ("maximum", "<="),
        ("exclusiveMaximum", "<"),
    ):
        if key in value:
            limits.append(f"{sign} {value[key]:g}")
    names = {
        "integer": "int",
        "number": "float",
        "string": "text",
        "boolean": "true or false",
        "object": "mapping",
    }
    return " ".join([names.get(kind, kind), *limits])


def commands_page() -> str:
    """Every command with its help and its options, from the program itself."""
    program = typer.main.get_command(app)
    lines = ["# Commands", "", "Generated from `tunebook --help`. In a clone, type `uv run tunebook ...`."]
    for name, command in _commands(program, "tunebook"):
        lines += ["", f"## {name}", "", _help(command.help or "")]
        rows = []
        for option in command.params:
            if option.param_type_name == "option" and not option.hidden:
                names = ", ".join(f"`{text}`" for text in [*option.opts, *option.secondary_opts])
                rows.append(f"| {names} | {_cell(option.help or '')} |")
        if rows:
            lines += ["", "| option | |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _commands(command: Any, name: str) -> list[tuple[str, Any]]:
    """All commands below one, with their whole names. (Typer has its own copy of click's classes.)"""
    if not hasattr(command, "commands"):
        return [(name, command)]
    commands = []
    for word, child in command.commands.items():
        commands += _commands(child, f"{name} {word}")
    return commands


def _help(text: str) -> str:
    """A help text as Markdown: what is indented is a command to copy."""
    return re.sub(r"^ *(uv run tunebook .*)$", r"    \1", text.strip(), flags=re.MULTILINE)


def record_page(name: str) -> str:
    """A text of resources/ as a page; links to files of the repository become their paths."""
    text = (ROOT / "resources" / f"{name}.md").read_text(encoding="utf-8")

    def path(match: re.Match[str]) -> str:
        place = (ROOT / "resources" / match[2]).resolve().relative_to(ROOT)
        return f"{match[1]} (`{place}`)"

    return re.sub(r"\[([^\]]+)\]\((?!https?:)([^)#]+)\)", path, text)


def generated() -> dict[str, str]:
    """The generated pages by their paths in docs/."""
    pages = {"reference/recipe.md": recipe_page(), "reference/commands.md": commands_page()}
    for name in RECORDS:
        pages[f"records/{name}.md"] = record_page(name)
    for path in sorted(NOTEBOOKS.glob("*.md")):
        pages[f"notebooks/{path.name}"] = path.read_text(encoding="utf-8")
    return pages


def figures() -> dict[str, Path]:
    """The figures by their paths in docs/."""
    files = [*(ROOT / "resources").glob("*.svg"), *(ROOT / "resources/smollm2-math/figures").glob("*.png")]
    found = {f"assets/{path.name}": path for path in sorted(files)}
    for path in sorted(NOTEBOOKS.glob("*.png")):
        found[f"notebooks/{path.name}"] = path
    return found


def main() -> None:
    for name, text in generated().items():
        page = DOCS / name
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")
    for name, path in figures().items():
        target = DOCS / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)


if __name__ == "__main__":
    main()
