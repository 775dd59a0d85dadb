"""What two texts, or two lists of tokens, begin with alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def common_start(first: Sequence[Any], second: Sequence[Any]) -> int:
    """The length of the beginning that both have in common."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
