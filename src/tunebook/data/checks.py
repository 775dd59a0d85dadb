"""Is a row sound, new, and unseen by the test? Each check passes a row on or says why not.

Word n-grams are compared with the numbers of the text beside them: two problems of the same wording with
different numbers are different problems, so a generator's (or a textbook's) own phrases do not drown real copies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from tunebook.checkers.maths import boxed, verify
from tunebook.data.rows import Reject, Row, rejected
from tunebook.models.chat_template import Messages

NOT_AN_ANSWER = re.compile(
    r"^\W*(error\b|api call failed|generation_error|traceback \(most recent|none\W*$|null\W*$|nan\W*$)"
    r"|^\W*(i'?m sorry,? but|i (can'?t|cannot|am unable to) (help|assist|answer|provide)|as an ai\b)",
    re.IGNORECASE,
)


def check_content(row: Row) -> Reject | None:
    """Empty text, turns out of order, error messages and refusals, and solutions that do not end in their own `gold` answer."""
    answer = row.completion[0]["content"]
    if not row.question.strip():
        return rejected(row, "empty prompt")
    if not answer.strip():
        return rejected(row, "empty completion")
    if broken := _broken_turn(row.prompt):
        return rejected(row, "broken turns", broken)
    if NOT_AN_ANSWER.search(answer):
        return rejected(row, "error text or refusal", answer[:80])
    if row.gold is not None and not (verdict := verify(answer, row.gold)).correct:
        return rejected(row, "wrong answer", f"ends in {verdict.parsed!r}, the answer is {row.gold!r}")
    if row.gold is None and boxed(answer) is not None:
        row.gold = boxed(answer)
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


def without(tokens: list[str]) -> Callable[[Row], Reject | None]:
    """A check for text that holds one of these control tokens: rendered, it would end the turn."""
    found = re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    def check(row: Row) -> Reject | None:
        match = next(
            (m for message in row.prompt + row.completion if (m := found.search(message["content"]))), None
        )
        return rejected(row, "control token in the text", match[0]) if match else None

    return check


def check_length(row: Row, limit: int) -> Reject | None:
    """Rows that the trainer would have to cut."""
    return (
        rejected(row, "too long", f"{row.tokens} tokens, max_seq_length is {limit}")
        if row.tokens > limit
        else None
    )


def accepted(
    rows: Iterable[Row | Reject], checks: list[Callable[[Row], Reject | None]]
) -> Iterator[Row | Reject]:
    """Put each row through the checks in order; the first that rejects it decides."""
    for row in rows:
        if isinstance(row, Row):
            yield next((reject for check in checks if (reject := check(row))), row)
        else:
            yield row
