"""Rows checked one by one, and their tokens counted as the trainer will see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import jinja2

from tunebook.data import checks
from tunebook.data.file_tokenizer import open_tokenizer
from tunebook.data.rows import Reject, Row, rejected
from tunebook.models import chat_template
from tunebook.models.image_input import TokenCounter
from tunebook.models.tokenizer import control_tokens, image_counter
from tunebook.recipe.errors import first_line
from tunebook.recipe.sections import ModelConfig


def count_and_check(
    items: Iterable[Row | Reject], config: ModelConfig, folder: Path
) -> Iterator[Row | Reject]:
    """The items in their order; each row with its tokens, or as a reject when it is not sound or too long.

    Args:
        items: read one at a time, so that memory stays flat.
        config: of the model whose tokenizer and chat template count.
        folder: where the images of rows lie.
    """
    checker = RowChecker(config, folder)
    for item in items:
        if isinstance(item, Reject):
            yield item
        else:
            yield checker.check(item) or item


class RowChecker:
    """All checks of a single row; fills in its `tokens`, and its `gold` where the answer shows it."""

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.tokenizer = open_tokenizer(config)
        self.check_control = checks.without(control_tokens(self.tokenizer))
        self.image_counter: TokenCounter | None = None

    def check(self, row: Row) -> Reject | None:
        reject = checks.check_content(row) or self.check_control(row)
        if reject:
            return reject
        try:
            row.tokens = self._count_with_images(row) if row.images else self._count(row)
        except jinja2.TemplateError as error:
            return rejected(row, "refused by the chat template", first_line(error))
        return checks.check_length(row, self.config.max_seq_length)

    def _count(self, row: Row) -> int:
        text = self.tokenizer.apply_chat_template(row.prompt + row.completion, tokenize=False)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _count_with_images(self, row: Row) -> int:
        if self.image_counter is None:
            self.image_counter = image_counter(self.config)
        processor = self.image_counter.processor
        messages = row.prompt + row.completion
        text = chat_template.render(processor, messages, len(row.images), answer_next=False)
        text_tokens = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return len(text_tokens) + self.image_counter.added(self.folder / name for name in row.images)
