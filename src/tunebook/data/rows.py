"""What data are made of: a `Row` is an example, a `Reject` is something that is not trained on, with the reason.

A row is conversational, as TRL wants it: `prompt` and `completion` are lists of messages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunebook.models.chat_template import Messages

SPLITS = ("train", "val", "test")


@dataclass
class Row:
    """One example. `gold` is the exact final answer where there is one; `slice` and `group` are for reports."""

    source_id: str
    split: str
    prompt: Messages
    completion: Messages
    gold: str | None = None
    slice: str = ""
    group: str = ""
    difficulty: str = ""
    images: list[Any] = field(default_factory=list)
    """A reader gives files (or their bytes); in the data they are names in `data/images`."""
    use: str | None = None
    """The stage that a train row is for, where it is for one alone: `sft` or `pairs`."""
    tokens: int = 0
    """Of prompt and completion together, as the trainer sees them; filled in by `prepare`."""

    @property
    def question(self) -> str:
        """What the user asks: the text of all messages but the system's."""
        return "\n".join(m["content"] for m in self.prompt if m["role"] != "system")


def images_of(row: dict[str, Any]) -> list[str]:
    """The image files of a row that was read back (`prepare.read_rows`); none where its data have no images."""
    return row.get("images") or []


@dataclass
class Reject:
    """Something that is not trained on, and why. Ends in `quarantine.jsonl`."""

    source_id: str
    reason: str
    detail: str = ""
    row: dict[str, Any] = field(default_factory=dict)


def split_of(text: str, val: float, test: float) -> str:
    """By a hash of the text (of a question): the same row stays in the same split when rows are added or reordered."""
    at = share(text)
    return "test" if at < test else "val" if at < test + val else "train"


def share(text: str) -> float:
    """A number from 0 to 1 that only the text decides."""
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:13], 16) / 16**13


def rejected(row: Row, reason: str, detail: str = "") -> Reject:
    """The row as a reject."""
    return Reject(
        row.source_id, reason, detail, {"prompt": row.prompt, "completion": row.completion, "gold": row.gold}
    )


def evenly(rows: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` rows, taken from all over: they may be sorted by slice."""
    limit = min(limit or len(rows), len(rows))
    return [rows[i * len(rows) // limit] for i in range(limit)]
