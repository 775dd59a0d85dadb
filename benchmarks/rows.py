"""Chat rows for the benchmarks: word problems of about 120 tokens, written as they are drawn.

Nothing is held in memory. Of a hundred rows one is an exact copy of an earlier one, one a copy with a word
more, and one is broken.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

WORDS = {
    "name": "Ada Ben Chen Dana Elif Femi Greta Hugo Ines Jonas Kofi Lena Mira Noah Olga Priya Quentin Rosa "
    "Sami Tara Umar Vera",
    "place": "bakery library harbour orchard workshop station museum garden school market farm theatre "
    "clinic hotel studio bridge",
    "things": "apples books crates tiles lamps bottles ropes chairs bricks tickets stamps plates shirts "
    "candles bicycles baskets",
}
TIMES = (
    "before noon",
    "on Monday",
    "in the first week",
    "during the festival",
    "by the end of March",
    "after the storm",
    "in the evening",
)
STARTS = (
    "{name} works at the {place} and counts {a} {things} there {time}.",
    "At the {place} there are {a} {things} {time}, as {name} notes in a small green book.",
    "{time} {name} finds {a} {things} behind the old {place}.",
    "The {place} that {name} runs has {a} {things} in stock {time}.",
)
MIDDLES = (
    (
        "Then {b} more {things} arrive from the {other}, "
        "and {c} of all of them are given away to the neighbours."
    ),
    (
        "A lorry from the {other} brings {b} further {things}, "
        "but {c} {things} turn out to be broken and are thrown out."
    ),
    "{friend}, who comes over from the {other}, adds {b} {things}; later {c} {things} are sold to a visitor.",
)
ENDS = (
    "How many {things} are left?",
    "How many {things} does {name} have in the end?",
    "What number of {things} remains at the {place}?",
)
SOLUTION = """### Solution
1. Start with what is there: {a} {things}.
2. Add what comes: {a} + {b} = {both}.
3. Take away what goes: {both} - {c} = {left}.
### Final Answer
\\boxed{{{left}}}"""


def draw(rng: random.Random) -> dict[str, str]:
    """One problem with its worked solution; words and numbers are drawn alike from many."""
    a = rng.randint(100, 9_999)
    b = rng.randint(10, 9_999)
    c = rng.randint(2, a + b - 1)
    left = a + b - c
    values: dict[str, str | int] = {name: rng.choice(words.split()) for name, words in WORDS.items()}
    values["friend"] = rng.choice(WORDS["name"].split())
    values["other"] = rng.choice(WORDS["place"].split())
    values["time"] = rng.choice(TIMES)
    values |= {"a": a, "b": b, "c": c, "both": a + b, "left": left}
    question = " ".join(rng.choice(part) for part in (STARTS, MIDDLES, ENDS))
    return {
        "prompt": question.format(**values),
        "completion": SOLUTION.format(**values),
        "answer": str(left),
    }


def rows(n: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """`n` rows, the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    # Copies are of one of the first thousand: the only rows that are kept.
    earlier = [draw(rng) for _ in range(min(n, 1_000))]
    yield from earlier
    for i in range(len(earlier), n):
        kind = i % 100
        if kind == 20:
            yield rng.choice(earlier)
        elif kind == 40:
            row = rng.choice(earlier)
            yield row | {"prompt": row["prompt"] + " Thanks"}
        elif kind == 60:
            yield draw(rng) | {"completion": rng.choice(("", "Error: API call failed", "\\boxed{-1}"))}
        else:
            yield draw(rng)


def write(path: Path, n: int, seed: int = 0) -> Path:
    """`n` rows as JSON lines."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows(n, seed))
    return path
