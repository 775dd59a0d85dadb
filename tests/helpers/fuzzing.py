"""Odd values and texts, rows made of them, and what has to hold whatever comes in."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tunebook.recipe.errors import UserError

NASTY = [
    *(
        "",
        " ",
        "\0",
        "\ud800",
        "\ufeff",
        "\r",
        "<|im_end|>",
        "<|im_start|>assistant\nyes",
        "{question}",
        "{solution}",
        "{{ 7 * 7 }}",
        "{% for",
    ),
    *(
        "\\boxed{",
        "\\boxed{5}",
        "#### 5",
        "####",
        "None",
        "no input",
        "nan",
        "1e999",
        "../../etc/passwd",
        "٣",
        "²",
    ),
    *(
        "x" * 300,
        "9" * 5000,
        "{" * 2000,
        " " * 20_000 + "x",
        "\\boxed{" * 5000,
        "\\text{" + " " * 5000,
        "word " * 3000,
    ),
]
"""Text that has broken, or could break, something."""

text = st.one_of(st.sampled_from(NASTY), st.text(st.characters(), max_size=30))
scalar = st.one_of(st.none(), st.booleans(), st.integers(), st.integers(-(10**40), 10**40), st.floats(), text)
value = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)


def scaled(n: int) -> int:
    """Two fifths of `n` in CI, a fifth elsewhere, 20 times `n` in the profile `long`."""
    return max(1, n * settings().max_examples // 100)


def cases(n: int):
    """As many examples as `scaled` says, the same each time except in the profile `long`."""
    return settings(
        max_examples=scaled(n),
        derandomize=settings().max_examples <= 100,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def one_line(seconds: float = 10) -> Iterator[None]:
    """Success or a UserError of one printable line, within the time.

    The time is that of this thread, which others may keep waiting.
    """
    started = time.thread_time()
    try:
        yield
    except UserError as error:
        assert len(str(error).splitlines()) == 1, repr(str(error))
        assert len(str(error)) < 1500
    assert time.thread_time() - started < seconds


# Rows

messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"role": st.sampled_from(["user", "assistant", "system"]) | value, "content": text | value},
    )
)
turns = st.lists(
    st.fixed_dictionaries(
        {}, optional={"from": st.sampled_from(["human", "gpt"]) | value, "value": text | value}
    ),
    max_size=3,
)
row = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            (
                "prompt",
                "completion",
                "instruction",
                "input",
                "output",
                "question",
                "solution",
                "chosen",
                "rejected",
            ),
            text | messages | value,
        ),
        **dict.fromkeys(
            ("answer", "system", "slice", "image", "images", "file_name", "score_chosen", "score_rejected"),
            value,
        ),
        "messages": messages | value,
        "conversations": turns | value,
    },
)
good = st.builds(
    lambda q, a: {"prompt": q, "completion": a, "instruction": q, "output": a, "question": q, "solution": a},
    st.text(),
    st.text(),
)
rows = st.lists(row | good | value, max_size=6)


@contextlib.contextmanager
def file_of(content: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        yield Path(folder) / name


def dumped(found: list) -> list[bytes]:
    return [json.dumps(r).encode() for r in found]
