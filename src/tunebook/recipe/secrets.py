"""Keys come from the environment or `.env`: read here, refused in recipes, kept out of what is printed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError, shorten
from tunebook.recipe.files import ROOT

_KEYS = (
    r"sk-(?=[\w-]*\d)[\w-]{16}",  # OpenAI and many after it; with a digit, unlike `sk-learn-and-other-kits`
    r"hf_[A-Za-z0-9]{20}",  # Hugging Face
    r"gh[pousr]_[A-Za-z0-9]{20}",  # GitHub
    r"github_pat_\w{20}",
    r"glpat-[\w-]{16}",  # GitLab
    r"xox[abp]-[\w-]{10}",  # Slack
    r"AKIA[0-9A-Z]{16}",  # Amazon
    r"AIza[\w-]{30}",  # Google
)
_OTHERS = (
    r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)",  # user and password in an address
    r"Bearer\s+[\w.~+/-]{12,}=*",  # an HTTP header
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
)
SECRET = re.compile(rf"\b(?:{'|'.join(_KEYS)})[\w-]*|{'|'.join(_OTHERS)}")
"""What a key, a token or a password in an address looks like."""

SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")
"""How the variables end that hold one."""

MOST_VALUES = 20_000
"""Values in a recipe: more come from aliases of aliases."""


def secret(name: str) -> str | None:
    """A key from the environment or from `.env` in the working folder or the project."""
    return set_variables().get(name)


def set_variables() -> dict[str, str]:
    """The environment's variables with those of the `.env` files."""
    from dotenv import dotenv_values

    variables = {}
    # The working folder's file wins over the project's, the environment over both.
    for place in (dotenv_values(ROOT / ".env"), dotenv_values(Path.cwd() / ".env"), os.environ):
        for name, value in place.items():
            if value:
                variables[name] = value
    return variables


def scrubbed(text: str, *keys: str) -> str:
    """A text without these keys and without anything else that looks like a secret."""
    for key in keys:
        if len(key) > 4:  # `none`, for a server that needs no key, is no secret
            text = text.replace(key, "***")
    return SECRET.sub("***", text)


def check_values(content: Any) -> None:
    """Raises UserError for a secret in a recipe, for what is no value of YAML's own, and for bad UTF-8."""
    known = []
    for name, value in set_variables().items():
        if SECRET_NAME.search(name) and len(value) >= 8:
            known.append(value)
    for key, value in _values_by_key(content):
        _check_value(key, value, known)
        if isinstance(value, dict):
            for name in value:
                _check_value(key, name, known)


def _values_by_key(content: Any) -> Iterator[tuple[str, Any]]:
    """All values of a recipe, sections and lists too, by dotted key.

    Raises UserError for a recipe that never ends.
    """
    waiting = [("", content)]
    for _ in range(MOST_VALUES):
        if not waiting:
            return
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            parts = list(value.items())
        elif isinstance(value, list | tuple):
            parts = list(enumerate(value))
        else:
            parts = []
        for name, part in parts:
            waiting.append((f"{key}.{name}".lstrip("."), part))
    raise UserError(
        f"the recipe has more than {MOST_VALUES} values: look for aliases (*name) that hold each other"
    )


def _check_value(key: str, value: Any, known_secrets: list[str]) -> None:
    if not isinstance(value, str | int | float | list | tuple | dict | None):
        raise UserError(
            f"{shorten(key)}: should be text, a number, a list or a section (it is {shorten(value)})"
        )
    if not isinstance(value, str):
        return
    if SECRET.search(value) or any(known in value for known in known_secrets):
        raise UserError(
            f"{scrubbed(key, *known_secrets)} holds a secret: "
            "keys come from the environment or from .env, never from a recipe"
        )
    if value.encode("utf-8", "replace").decode() != value:  # half of a surrogate pair
        raise UserError(f"{shorten(key)}: is not UTF-8 text")
