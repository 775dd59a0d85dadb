"""What data are made of: a `Row` is an example, a `Reject` something that is not trained on, and why.

A row is conversational, as TRL wants it: `prompt` and `completion` are lists of messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunebook.models.chat_template import Messages

SPLITS = ("train", "val", "test")

# A row as it was read, by its own columns.
Raw = dict[str, Any]


@dataclass
class Row:
    """One example. `gold` is the exact final answer where it has one; `slice` and `group` are for reports."""

    source_id: str
    split: str
    prompt: Messages
    completion: Messages
    """The answer; empty where a row has none and is for pairs or evaluation alone."""
    gold: str | None = None
    slice: str = ""
    group: str = ""
    difficulty: str = ""
    images: list[Any] = field(default_factory=list)
    """A reader gives files (or their bytes); in the data they are names in `data/images`."""
    chat: str = ""
    """The whole conversation as JSON, of a row with tools, reasoning or weights (`tools.py`)."""
    columns: str = ""
    """The row's other columns as JSON, for the recipe's `check`; filled in where there is one."""
    use: str | None = None
    """The stage that a train row is for, where it is for one alone: `sft` or `pairs`."""
    tokens: int = 0
    """Of prompt and completion together, as the trainer sees them; filled in by `prepare`."""

    @property
    def answer(self) -> str:
        """The text of its answer; empty without one."""
        return self.completion[0]["content"] if self.completion else ""

    @property
    def question(self) -> str:
        """What the user asks: the text of all messages but the system's."""
        return "\n".join(m["content"] for m in self.prompt if m["role"] != "system")


@dataclass
class Reject:
    """Something that is not trained on, and why. Ends in `quarantine.jsonl`."""

    source_id: str
    reason: str
    detail: str = ""
    row: dict[str, Any] = field(default_factory=dict)


class Unusable(ValueError):
    """Why something is not trained on, while it is no row yet."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


def rejected(row: Row, reason: str, detail: str = "") -> Reject:
    """The row as a reject."""
    content = {"prompt": row.prompt, "completion": row.completion, "gold": row.gold}
    return Reject(row.source_id, reason, detail, content)


def images_of(row: dict[str, Any]) -> list[str]:
    """The image files of a row that was read back (`storage.read_rows`), if it has some."""
    return row.get("images") or []


def split_of(text: str, val: float, test: float) -> str:
    """The split of a question, by its hash: the same however many rows are added or reordered."""
    fraction = hash_fraction(text)
    if fraction < test:
        return "test"
    if fraction < test + val:
        return "val"
    return "train"


def hash_fraction(text: str) -> float:
    """A number from 0 to 1 that only the text decides."""
    # Half a surrogate pair, which a data set may hold, is no valid UTF-8.
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:13], 16) / 16**13


def evenly(rows: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` rows, taken from all over: they may be sorted by slice."""
    # None means all of them.
    limit = min(limit or len(rows), len(rows))
    return [rows[i * len(rows) // limit] for i in range(limit)]
