"""Loss on the assistant's turns: rows tokenised here, as TRL's prompt and completion train the last alone.

TRL takes rows of `input_ids` and `labels` as they are, and packs or pads them like its own. Its
`assistant_only_loss` needs a template that marks the assistant's text, which few models bring.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunebook.models.turns import Conversation, TurnMarks, labelled
from tunebook.recipe.errors import UserError


def needs_masks(rows: Iterable[dict[str, Any]], train_on: str | None) -> bool:
    """Whether rows have more to train than their last answer, or more than text."""
    for row in rows:
        if row.get("chat"):
            return True
        if train_on != "last" and any(message["role"] == "assistant" for message in row["prompt"]):
            return True
    return False


def masked_splits(rows: dict[str, Any], tokenizer: Any, train_on: str | None) -> dict[str, Any]:
    """The splits as they are where each row has one answer in plain text, else as `masked_rows`.

    Raises UserError when `all` turns are asked for, or rows have tools, and the chat template tells no turns.
    """
    train = rows["train"]
    if "images" in train.column_names or not needs_masks(train, train_on):
        return rows
    try:
        marks = TurnMarks.of(tokenizer)
    except UserError as error:
        if train_on == "all" or "chat" in train.column_names:
            raise
        print(f"Only the last answer of each row carries loss: {error}")
        return rows
    return {name: masked_rows(split, tokenizer, marks, train_on or "all") for name, split in rows.items()}


def masked_rows(rows: Any, tokenizer: Any, marks: TurnMarks, train_on: str) -> Any:
    """Rows (a `datasets.Dataset`) as `input_ids` and `labels`, which are -100 where nothing is trained.

    Args:
        train_on: `last` or `all` assistant turns.

    Raises UserError for a row of which the template shows not all turns.
    """
    dropped = sum(_drops_reasoning(row, tokenizer) for row in rows)
    if dropped:
        print(f"The chat template drops the reasoning of earlier turns in {dropped} rows.")

    def tokenised(row: dict[str, Any]) -> dict[str, list[int]]:
        return labelled(row, tokenizer, marks, train_on)

    return rows.map(tokenised, remove_columns=rows.column_names, desc="masks")


def _drops_reasoning(row: dict[str, Any], tokenizer: Any) -> bool:
    """Whether a turn's reasoning is not in the row's rendered text."""
    reasoning = []
    for message in Conversation.of(row).messages:
        if message.get("reasoning_content"):
            reasoning.append(message["reasoning_content"].strip())
    if not reasoning:
        return False
    text = Conversation.of(row).render(tokenizer)
    return any(part not in text for part in reasoning)
