"""Is a single row sound, and short enough? Each check returns why not, or None."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import jinja2

from tunebook.checkers.check import Check
from tunebook.checkers.instructions import BadInstruction
from tunebook.checkers.maths import boxed
from tunebook.data.rows import Reject, Row, rejected
from tunebook.data.tokens import open_tokenizer
from tunebook.models import chat_template
from tunebook.models.chat_template import Messages
from tunebook.models.image_input import TokenCounter
from tunebook.models.tokenizer import control_tokens, image_counter
from tunebook.models.turns import Conversation, TurnMarks, trained_spans
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import ModelConfig, Refusals

# The beginning of an error message or a refusal, where a model was asked for a solution: in texts that are
# generated. A person's own rows may begin so.
NOT_AN_ANSWER = re.compile(
    r"^\W*(error\b|api call failed|generation_error|traceback \(most recent|none\W*$|null\W*$|nan\W*$)"
    r"|^\W*(i'?m sorry,? but|i (can'?t|cannot|am unable to) (help|assist|answer|provide)|as an ai\b)",
    re.IGNORECASE,
)

# What the machinery that made the rows left in place of an answer.
ERROR_TEXT = re.compile(
    r"^\W*(?:error\W+)?(?:api call failed|generation_error)\b"
    r"|^\W*traceback \(most recent call last\):?\s*(?:\n|$)"
    r"|^\s*(?:none|null|nan|#n/a|#(?:name\?|ref!|value!|div/0!|num!|null!))\s*$",
    re.IGNORECASE,
)

# An answer that does nothing but refuse: short, and without the `but` after which help follows.
REFUSAL = re.compile(
    r"^\W*(?:(?:i'?m|i am) (?:very |really )?sorry,? (?:but )?|sorry,? (?:but )?|i apologi[sz]e,? (?:but )?)?"
    r"(?:as an ai(?: language model| assistant)?,? )?"
    r"i (?:can'?t|cannot|can not|won'?t|will not|am unable to|am not able to|'?m unable to|'?m not able to) "
    r"(?:help|assist|answer|provide|comply|fulfil|do that|support|engage)\b(?!.*\b(?:but|however|instead)\b)",
    re.IGNORECASE | re.DOTALL,
)
LONGEST_REFUSAL = 300  # characters

# They show nothing, though Unicode counts them as letters or marks.
INVISIBLE = "\u034f\u115f\u1160\u2800\u3164\ufe0e\ufe0f\uffa0"


class RowChecker:
    """All checks of a single row; fills in its `tokens`, and its `gold` where the answer shows it.

    Args:
        config: of the model whose tokenizer and chat template count.
        folder: where the images of rows lie.
        refusals: whether rows whose answer is a refusal are kept.
        train_on: which assistant turns carry loss (`data.train_on`).
        check: what a row's own answer is checked by; None where it is not.
    """

    def __init__(
        self,
        config: ModelConfig,
        folder: Path,
        refusals: Refusals = "keep",
        train_on: str | None = None,
        check: Check | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.refusals = refusals
        self.train_on = train_on
        self.answer_check = check
        self.marks: TurnMarks | None = None
        self.tokenizer = open_tokenizer(config)
        self.image_counter: TokenCounter | None = None
        # Rendered, a control token in the text would end the turn. Without any, the pattern matches nowhere.
        tokens = map(re.escape, control_tokens(self.tokenizer))
        self.control_token = re.compile("|".join(tokens) or r"(?!)")

    def check(self, row: Row) -> Reject | None:
        """Reject a row that the trainer cannot learn from as it is."""
        reject = check_content(row)
        if not reject and self.answer_check:
            reject = _check_answer(row, self.answer_check)
        if reject:
            return reject
        answer = row.answer
        if self.refusals == "drop" and is_refusal(answer):
            return rejected(row, "refusal", answer[:80])
        texts = [message["content"] for message in row.prompt + row.completion]
        if row.chat:  # reasoning and the descriptions of tools are rendered too
            texts = [row.chat]
        for text in texts:
            match = self.control_token.search(text)
            if match:
                return rejected(row, "control token in the text", match[0])
        if row.chat:
            dropped = self._dropped(row)
            if dropped:
                return rejected(row, *dropped)
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
        text = Conversation.of(vars(row)).render(self.tokenizer)
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _dropped(self, row: Row) -> tuple[str, str] | None:
        """Reason and detail when the chat template leaves out tools, or a turn that is to be trained."""
        if row.images:
            return (
                "tools",
                "a row with images is trained as text and images alone, without tools or reasoning",
            )
        conversation = Conversation.of(vars(row))
        try:
            if self.marks is None:
                self.marks = TurnMarks.of(self.tokenizer)
            without_tools = Conversation(conversation.messages)
            text = conversation.render(self.tokenizer)
            if conversation.tools and text == without_tools.render(self.tokenizer):
                return "tools", "the chat template does not show the row's tools"
            trained = trained_spans(vars(row), self.tokenizer, self.marks, self.train_on or "all")
        except (jinja2.TemplateError, ValueError, UserError) as error:
            has_tools = conversation.tools or any(
                message.get("tool_calls") for message in conversation.messages
            )
            return "tools" if has_tools else "refused by the chat template", first_line(error)
        if not trained:
            return "weight 0", "no turn that data.train_on names carries loss"
        return None

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
    """Reject empty text, turns out of order and error messages.

    A row without `gold` gets it from the box in its answer, where there is one.
    """
    # The first check that fails gives the reason, so the plainest come first.
    answer = row.answer
    if is_empty(row.question) or row.question.strip().lower() == "nan":
        return rejected(row, "empty prompt", row.question.strip())
    if row.completion and is_empty(answer):
        return rejected(row, "empty completion")
    # Turns with tools have an order of their own, which is checked where they are read.
    broken_turn = "" if row.chat else _broken_turn(row.prompt)
    if broken_turn:
        return rejected(row, "broken turns", broken_turn)
    if ERROR_TEXT.search(answer) and not _is_gold(answer, row.gold):
        return rejected(row, "error text", answer[:80])
    if row.gold is None:
        row.gold = boxed(answer)
    return None


def _check_answer(row: Row, check: Check) -> Reject | None:
    """Reject a row whose own answer is wrong."""
    if not row.completion:
        return None
    try:
        judgement = check.judge(vars(row), row.answer)
    except BadInstruction as error:
        return rejected(row, "unknown instruction", str(error))
    if judgement.correct is not False:
        return None
    if judgement.score is None:
        return rejected(row, "wrong answer", f"ends in {judgement.parsed!r}, the answer is {row.gold!r}")
    detail = f"its score by {check.names} is {judgement.score:.3g}, check.threshold is {check.threshold:.3g}"
    return rejected(row, "wrong answer", detail)


def is_empty(text: str) -> bool:
    """Whether nothing can be seen of a text: spaces and zero-width characters alone."""
    for character in text:
        # Cf: zero-width spaces, joiners and byte order marks; Cc: control characters.
        hidden = character in INVISIBLE or unicodedata.category(character) in ("Cf", "Cc")
        if not hidden and not character.isspace():
            return False
    return True


def is_refusal(answer: str) -> bool:
    """Whether an answer does nothing but refuse."""
    return len(answer) <= LONGEST_REFUSAL and bool(REFUSAL.search(answer.replace("\u2019", "'")))


def _is_gold(answer: str, gold: str | None) -> bool:
    """Whether an answer is the right one to the letter: `None` may be what a line of Python prints."""
    return gold is not None and answer.strip() == gold.strip()


def _broken_turn(prompt: Messages) -> str:
    """What is wrong with the turns of a prompt, which ends with the user's; empty when nothing is."""
    turns = prompt[1:] if prompt[0]["role"] == "system" else prompt
    for i, message in enumerate(turns):
        expected = "user" if i % 2 == 0 else "assistant"
        if message["role"] != expected:
            return f"turn {i + 1} is the {message['role']}'s, the {expected}'s is expected"
        if is_empty(message["content"]):
            return f"turn {i + 1} is empty"
    return ""
