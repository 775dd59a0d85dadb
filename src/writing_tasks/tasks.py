"""Writing tasks drawn by seed: a topic, a way to ask, and one to three instructions.

Which topics a split has never changes, so no two splits share one. Some kinds of instruction, and some
combinations of kinds, are kept out of training: a test can then tell obeying from knowing by heart.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from writing_tasks.kinds import KINDS, draw_kinds, instruction
from writing_tasks.topics import ASKS, SPLITS, TOPICS, WRITTEN, topics_of

SLICES = ("trained kinds", "new combinations", "new kinds")
COUNTS = {
    "trained kinds": (1, 1, 1, 1, 1, 1, 2, 2, 2, 3),
    "new combinations": (2, 2, 2, 3),
    "new kinds": (1, 1, 2),
}
"""How many instructions a task of a slice has; one of these is drawn."""
ATTEMPTS = 1000
"""Draws without a new task after which a split counts as exhausted."""

ALWAYS = ("no_repetition", {"min_words": 5})
"""What is asked of every text without saying so: an empty trick is no text."""


@dataclass(frozen=True)
class Task:
    """A task as data."""

    topic: str
    ask: int
    """Which of `ASKS`."""
    kinds: tuple[str, ...]
    values: tuple[Any, ...]
    written: str | None = None
    """A text that obeys, of the few tasks that have one."""

    @property
    def prompt(self) -> str:
        """What the model is asked."""
        sentences = [ASKS[self.ask].format(self.topic)]
        for kind, value in zip(self.kinds, self.values, strict=True):
            sentences.append(KINDS[kind].say(value))
        return " ".join(sentences)

    @property
    def instructions(self) -> list[Any]:
        """What the checker looks for: that the topic is named, that the text is one, and what was asked."""
        checked: list[Any] = [{"mention": TOPICS[self.topic]}, *ALWAYS]
        for kind, value in zip(self.kinds, self.values, strict=True):
            checked.append(instruction(kind, value))
        return checked

    @property
    def slice(self) -> str:
        """Which of `SLICES` the task is in."""
        if any(KINDS[kind].held_out for kind in self.kinds):
            return "new kinds"
        return "new combinations" if is_held_out(self.kinds) else "trained kinds"

    @property
    def id(self) -> str:
        """The same for the same task, and for no other."""
        digest = hashlib.sha256(self.prompt.encode()).hexdigest()[:8]
        return f"{self.topic}/{'+'.join(self.kinds)}/{digest}"


def is_held_out(kinds: tuple[str, ...]) -> bool:
    """Whether training never shows these kinds together: a quarter of all combinations."""
    digest = hashlib.sha256("+".join(kinds).encode()).hexdigest()
    return len(kinds) > 1 and int(digest, 16) % 4 == 0


def tasks(split: str, number: int, seed: int = 0, slices: tuple[str, ...] = SLICES) -> Iterator[Task]:
    """Draw `number` different tasks of a split, the same for the same arguments.

    `sft` and `pairs` are for training, and hold the slice `trained kinds` alone. val and test are for half of
    `trained kinds`, for a third of `new combinations` and for a sixth of `new kinds`, one after the other.

    Raises ValueError for a split that is not known, and when it has fewer tasks.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: choose from {', '.join(SPLITS)}")
    parts = {"trained kinds": number}
    if split in ("val", "test"):
        third = number // 3
        sixth = number // 6
        parts = {"trained kinds": number - third - sixth, "new combinations": third, "new kinds": sixth}
    for name, part in parts.items():
        if name in slices:
            yield from _tasks_of_slice(split, name, part, random.Random(f"{seed}/{split}/{name}"))


def _tasks_of_slice(split: str, name: str, number: int, generator: random.Random) -> Iterator[Task]:
    topics = topics_of(split)
    trained = [kind for kind in KINDS if not KINDS[kind].held_out]
    held_out = [kind for kind in KINDS if KINDS[kind].held_out]
    prompts: set[str] = set()
    attempts = 0
    while len(prompts) < number:
        count = generator.choice(COUNTS[name])
        kinds = draw_kinds(generator, held_out + trained if name == "new kinds" else trained, count)
        values = tuple(generator.choice(KINDS[kind].values) for kind in kinds)
        task = Task(generator.choice(topics), generator.randrange(len(ASKS)), kinds, values)
        attempts += 1
        if task.slice == name and task.prompt not in prompts:
            prompts.add(task.prompt)
            attempts = 0
            yield task
        elif attempts > ATTEMPTS:
            raise ValueError(f"the {split} split has {len(prompts)} tasks of {name}, {number} were asked for")


def written_tasks() -> Iterator[Task]:
    """Tasks of the split `sft` with a text that obeys, two for each of `WRITTEN`."""
    for number, (topic, (first, second)) in enumerate(WRITTEN.items()):
        texts = (
            ("lower", True, f"{first} {second}".lower()),
            ("bullets", 2, f"- {first}\n- {second}"),
            ("end", "That is all.", f"{first} {second} That is all."),
        )
        # Each topic shows two of the three.
        for kind, value, text in (texts[number % 3], texts[(number + 1) % 3]):
            yield Task(topic, number % len(ASKS), (kind,), (value,), text)


def row(task: Task) -> dict[str, Any]:
    """A task as a row of JSON; `completion` only where a text was written."""
    content = {
        "prompt": task.prompt,
        "instructions": task.instructions,
        "slice": task.slice,
        "kinds": "+".join(task.kinds),
        "id": task.id,
    }
    if task.written is not None:
        content["completion"] = task.written
    return content
