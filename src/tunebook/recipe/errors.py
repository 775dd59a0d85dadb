"""What a user's mistake looks like: one line that says how to mend it."""

from __future__ import annotations

import difflib
import typing
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend. Shown as one line, on the command line (exit code 2) and in notebooks."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook
        return [f"{type(self).__name__}: {self}"]


def first_line(error: BaseException) -> str:
    """What went wrong, in one line; the kind of error where it has no text."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def shorten(value: Any, most: int = 80) -> str:
    """A value in a message: in one line, and not all of a long one."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def did_you_mean(word: str, choices: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(choices), 1, 0.5)
    return f", did you mean {close[0]}?" if close else ""
