"""Is a single row sound, and short enough? Each check returns why not, or None."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2

from tunebook.checkers.maths import boxed, verify
from tunebook.data.rows import Reject, Row, rejected
from tunebook.data.tokens import open_tokenizer
from tunebook.models import chat_template
from tunebook.models.chat_template import Messages
from tunebook.models.image_input import TokenCounter
from tunebook.models.tokenizer import control_tokens, image_counter
from tunebook.recipe.errors import first_line
from tunebook.recipe.sections import ModelConfig

# The beginning of an error message or a refusal.
NOT_AN_ANSWER = re.compile(
    r"^\W*(error\b|api call failed|generation_error|traceback \(most recent|none\W*$|null\W*$|nan\W*$)"
    r"|^\W*(i'?m sorry,? but|i (can'?t|cannot|am unable to) (help|assist|answer|provide)|as an ai\b)",
    re.IGNORECASE,
)


class RowChecker:
    """All checks of a single row; fills in its `tokens`, and its `gold` where the answer shows it.

    Args:
        config: of the model whose tokenizer and chat template count.
        folder: where the images of rows lie.
    """

    def __init__(self, config: ModelConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.tokenizer = open_tokenizer(config)
        self.image_counter: TokenCounter | None = None
        # Rendered, a control token in the text would end the turn. Without any, the pattern matches nowhere.
        tokens = map(re.escape, control_tokens(self.tokenizer))
        self.control_token = re.compile("|".join(tokens) or r"(?!)")

    def check(self, row: Row) -> Reject | None:
        """Reject a row that the trainer cannot learn from as it is."""
        reject = check_content(row)
        if reject:
            return reject
        for message in row.prompt + row.completion:
            match = self.control_token.search(message["content"])
            if match:
                return rejected(row, "control token in the text", match[0])
        try:
            row.tokens = self._count_with_images(row) if row.images else self._count(row)
        except jinja2.TemplateError as error:
            return rejected(row, "refused by the chat template", first_line(error))
        if row.tokens > self.config.max_seq_length:
            return rejected(
                row, "too long", f"{row.tokens} tokens, max_seq_length is {self.config.max_seq_length}"
            )
        return None

    def _count(self, row: Row) -> int:
        text = self.tokenizer.apply_chat_template(row.prompt + row.completion, tokenize=False)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _count_with_images(self, row: Row) -> int:
        # Only transformers' processors know what an image takes.
        if self.image_counter is None:
            self.image_counter = image_counter(self.config)
        processor = self.image_counter.processor
        messages = row.prompt + row.completion
        text = chat_template.render(processor, messages, len(row.images), answer_next=False)
        text_tokens = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return len(text_tokens) + self.image_counter.added(self.folder / name for name in row.images)


def check_content(row: Row) -> Reject | None:
    """Reject empty text, turns out of order, error messages, refusals, and answers that are not `gold`.

    A row without `gold` gets it from the box in its answer, where there is one.
    """
    # The first check that fails gives the reason, so the plainest come first.
    answer = row.completion[0]["content"]
    if not row.question.strip():
        return rejected(row, "empty prompt")
    if not answer.strip():
        return rejected(row, "empty completion")
    broken_turn = _broken_turn(row.prompt)
    if broken_turn:
        return rejected(row, "broken turns", broken_turn)
    if NOT_AN_ANSWER.search(answer):
        return rejected(row, "error text or refusal", answer[:80])
    if row.gold is None:
        row.gold = boxed(answer)
        return None
    verdict = verify(answer, row.gold)
    if not verdict.correct:
        return rejected(row, "wrong answer", f"ends in {verdict.parsed!r}, the answer is {row.gold!r}")
    return None


def _broken_turn(prompt: Messages) -> str:
    """What is wrong with the turns of a prompt, which ends with the user's; empty when nothing is."""
    turns = prompt[1:] if prompt[0]["role"] == "system" else prompt
    for i, message in enumerate(turns):
        expected = "user" if i % 2 == 0 else "assistant"
        if message["role"] != expected:
            return f"turn {i + 1} is the {message['role']}'s, the {expected}'s is expected"
        if not message["content"].strip():
            return f"turn {i + 1} is empty"
    return ""
