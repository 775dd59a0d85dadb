"""Keys come from the environment or `.env`; here they are read, looked for in recipes, and kept out of what is printed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError, shorten
from tunebook.recipe.files import ROOT


def secret(name: str) -> str | None:
    """A key from the environment or from `.env` in the working folder or the project."""
    return variables().get(name)


def variables() -> dict[str, str]:
    """The variables that are set, with those of the `.env` files."""
    from dotenv import dotenv_values

    places = (dotenv_values(ROOT / ".env"), dotenv_values(Path.cwd() / ".env"), os.environ)
    return {name: value for place in places for name, value in place.items() if value}


SECRET = re.compile(
    r"\b(?:sk-(?=[\w-]*\d)[\w-]{16}|hf_[A-Za-z0-9]{20}|gh[pousr]_[A-Za-z0-9]{20}|github_pat_\w{20}|glpat-[\w-]{16}|xox[abp]-[\w-]{10}|AKIA[0-9A-Z]{16}|AIza[\w-]{30})[\w-]*"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|Bearer\s+[\w.~+/-]{12,}=*|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""What a key, a token or a password in an address looks like."""


def scrubbed(text: str, *keys: str) -> str:
    """A text without these keys and without anything else that looks like a secret."""
    for key in keys:
        text = (
            text.replace(key, "***") if len(key) > 4 else text
        )  # `none`, for a server that asks for no key, is no secret
    return SECRET.sub("***", text)


LARGE = 20_000
"""Values of a recipe: more come from aliases of aliases."""


def values_of(content: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of a recipe, each with its dotted key. Raises UserError for one that never ends."""
    waiting: list[tuple[str, Any]] = [("", content)]
    for _ in range(LARGE):
        if not waiting:
            return
        at, value = waiting.pop()
        yield at, value
        inside = (
            value.items()
            if isinstance(value, dict)
            else enumerate(value)
            if isinstance(value, list | tuple)
            else ()
        )
        waiting += [(f"{at}.{key}".lstrip("."), part) for key, part in inside]
    raise UserError(f"the recipe has more than {LARGE} values: look for aliases (*name) that hold each other")


def check_values(content: Any) -> None:
    """Raises UserError for a secret in a recipe, for what is no value of YAML's own, and for text that is no UTF-8."""
    names = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")
    known = {v for k, v in variables().items() if names.search(k) and len(v) >= 8}
    for at, value in values_of(content):
        for text in (value, *value) if isinstance(value, dict) else (value,):
            if not isinstance(text, str | int | float | list | tuple | dict | None):
                raise UserError(
                    f"{shorten(at)}: should be text, a number, a list or a section (it is {shorten(text)})"
                )
            if isinstance(text, str) and (SECRET.search(text) or any(key in text for key in known)):
                raise UserError(
                    f"{scrubbed(at, *known)} holds a secret: keys come from the environment or from .env, never from a recipe"
                )
            if (
                isinstance(text, str)
                and not text.isascii()
                and text.encode("utf-8", "replace").decode() != text
            ):
                raise UserError(f"{shorten(at)}: is not UTF-8 text")
