"""A first look at a file: rows of which form, or preference pairs, and which of its columns are what."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tunebook.data import recognise
from tunebook.data.fields import lower_cased
from tunebook.data.records import all_records, renamed
from tunebook.data.rows import Reject, Unusable
from tunebook.pairs import forms
from tunebook.recipe.errors import UserError, did_you_mean

LOOKED_AT = 2_000
"""Rows that are read to see what a file holds."""


@dataclass
class Look:
    """What the first rows of a file hold."""

    path: str
    rows: int = 0
    has_more: bool = False
    is_preference: bool = False
    form: str = ""
    columns: list[str] = field(default_factory=list)
    unreadable: Counter[str] = field(default_factory=Counter)
    """Rows that cannot be read, by reason."""
    example: str = ""
    """Of the first of them, what is wrong."""
    renames: dict[str, str] = field(default_factory=dict)
    """The recipe's `columns`."""
    lengths: Counter[str] = field(default_factory=Counter)
    """Characters of each column of text in rows of unknown columns."""
    guess: dict[str, str] = field(default_factory=dict)
    """What `columns` may be, of rows of unknown columns: of two, or by their names."""


def parsed_columns(text: str | None) -> dict[str, str]:
    """`prompt=Frage,completion=Antwort` as a recipe's `columns`. Raises UserError for another text."""
    columns = {}
    for part in (text or "").split(","):
        ours, _, theirs = part.partition("=")
        if theirs:
            columns[ours.strip()] = theirs.strip()
        elif part.strip():
            raise UserError(f"--columns: {part!r} is no pair of names, as in prompt=Frage,completion=Antwort")
    return columns


def look_at(path: str, renames: dict[str, str] | None = None) -> Look:
    """The form, the columns and the number of a file's rows. Raises UserError when it cannot be opened.

    Args:
        renames: Of columns, {our name: its name}.
    """
    look = Look(path, renames=renames or {})
    names = Counter[str]()
    columns: dict[str, None] = {}  # of all rows, in their order
    # The whole of a large file would take minutes, and says nothing more.
    for _, raw in all_records(path, "train", "init"):
        if look.rows == LOOKED_AT:
            look.has_more = True
            break
        look.rows += 1
        try:
            if isinstance(raw, Reject):
                raise Unusable(raw.reason, raw.detail)
            columns |= dict.fromkeys(raw)
            name, is_preference = _form(renamed(raw, look.renames))
        except Unusable as error:
            look.unreadable[error.reason] += 1
            look.example = look.example or str(error)
            if error.reason in ("unknown columns", "missing column") and isinstance(raw, dict):
                for column, text in raw.items():
                    if isinstance(text, str):
                        look.lengths[column] += len(text)
            continue
        names[name] += 1
        look.is_preference |= is_preference
        look.columns = look.columns or list(raw)
    for theirs in look.renames.values():
        if theirs not in columns:
            near = did_you_mean(theirs, columns)
            raise UserError(f"{path}: no column {theirs!r}{near}; there are: {', '.join(columns)}")
    # Of all rows together: in a single one a cell may be empty, or the longer answer the shorter one.
    look.guess = recognise.named_alike(look.lengths)
    both = recognise.longest(look.lengths)
    if both and not look.guess and len(columns) == 2:
        look.guess = {"prompt": both[0], "completion": both[1]}
    if names:
        look.form = names.most_common(1)[0][0]
    return look


def _form(raw: dict[str, Any]) -> tuple[str, bool]:
    """The name of a row's form, and whether it is one of preference sets. Raises Unusable."""
    # KTO's rows: one answer each, with a label; two of one prompt make a pair.
    row = lower_cased(raw)
    if "completion" in row and str(row.get("label")).strip().lower() in ("true", "false"):
        return "answers with a label", True
    with contextlib.suppress(Unusable):
        return forms.recognised(raw).name, True
    return recognise.recognised(raw).name, False
