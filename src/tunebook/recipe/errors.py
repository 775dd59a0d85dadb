"""What a user's mistake looks like: one line that says how to mend it."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend: one line on the command line (exit code 2) and in notebooks."""

    exit_code = 2

    def _render_traceback_(self) -> list[str]:  # IPython's hook
        return [f"{type(self).__name__}: {self}"]


class NotFinished(UserError):
    """A stage is asked for that builds on one which has no result yet."""


def first_line(error: BaseException) -> str:
    """What went wrong, in one line; the kind of error where it has no text."""
    lines = str(error).strip().splitlines()
    if lines and lines[0]:
        return lines[0]
    return type(error).__name__


def one_line(error: BaseException) -> str:
    """All that an error says, on one line; its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


@functools.cache
def say_once(text: str, to_stderr: bool = False) -> None:
    """Print a text, unless this process has said it before."""
    print(text, file=sys.stderr if to_stderr else sys.stdout)


def shorten(value: Any, most: int = 80) -> str:
    """A value in a message: on one line, and not all of a long one."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    if len(text) > most:
        return f"{text[: most - 3]}..."
    return text


def did_you_mean(word: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """The end of a message that names the nearest choice; empty when none is near.

    `cutoff` is how near, from 0 to 1: among many choices one of 0.5 is near by chance.
    """
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
    return f", did you mean {close[0]}?" if close else ""
