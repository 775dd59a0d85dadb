"""Loss on the assistant's turns: rows tokenised here, as TRL's prompt and completion train the last alone.

TRL takes rows of `input_ids` and `assistant_masks`, and packs or pads them like its own. Its
`assistant_only_loss` needs a template that marks the assistant's text, which few models bring. Rows of
`labels` would do too, but for them Unsloth on a GPU takes another collator, which cannot pack.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tunebook.models.chat_template import text_tokenizer
from tunebook.models.turns import NO_LOSS, Conversation, TurnMarks, labelled
from tunebook.recipe.errors import UserError
from tunebook.training.arguments import only


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
    turns = [only(["prompt", "chat"], split) for split in rows.values()]  # images are not read for this
    if not any(needs_masks(split, train_on) for split in turns):
        return rows
    columns = rows["train"].column_names
    has_chats = "chat" in columns
    if "images" in columns:
        if has_chats:
            raise UserError(
                "rows with images and rows with tools, reasoning or weights are not trained together: "
                "leave one of the two sources out"
            )
        print("Only the last answer of each row carries loss: the rows have images")
        return rows
    tokenizer = text_tokenizer(tokenizer)
    try:
        marks = TurnMarks.of(tokenizer)
    except ValueError as error:
        if train_on == "all" or has_chats:
            raise UserError(f"{error}: set data.train_on=last") from None
        print(f"Only the last answer of each row carries loss: {error}")
        return rows
    return {name: masked_rows(split, tokenizer, marks, train_on or "all") for name, split in rows.items()}


def masked_rows(rows: Any, tokenizer: Any, marks: TurnMarks, train_on: str) -> Any:
    """Rows (a `datasets.Dataset`) as `input_ids` and `assistant_masks`: 1 at each token that is trained.

    Args:
        train_on: `last` or `all` assistant turns.

    Raises UserError for a row of which the template shows not all turns.
    """
    dropped = sum(Conversation.of(row).drops_reasoning(tokenizer) for row in rows)
    if dropped:
        print(f"The chat template drops the reasoning of earlier turns in {dropped} rows.")

    def tokenised(row: dict[str, Any]) -> dict[str, list[int]]:
        tokens = labelled(row, tokenizer, marks, train_on)
        masks = [int(label != NO_LOSS) for label in tokens["labels"]]
        return {"input_ids": tokens["input_ids"], "assistant_masks": masks}

    return rows.map(tokenised, remove_columns=rows.column_names, desc="masks")
