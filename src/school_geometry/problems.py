"""School geometry problems: a seeded generator with exact answers and worked steps.

A problem is data first (`Problem`: family, values, names) and text second (`question`, `solution`), so that
the same problem can be worded in several ways, drawn as a figure, and recognised whatever its wording.
Whether a problem belongs to train, val or test follows from a hash of its values: the splits cannot share
one, whatever their sizes. Whole families and whole wordings are kept out of training, so that a test can tell
learning from memorising.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from school_geometry.families import FAMILIES

NAMES = ("ABCD", "PQRS", "WXYZ", "EFGH", "KLMN", "RSTU")
SLICES = ("same families", "new wordings", "new families")
TRAINED = (0, 1, 2)
"""The wordings of each family that training shows; the next one is held out."""
ATTEMPTS = 3000
"""Draws without a new problem after which a family counts as exhausted."""


@dataclass(frozen=True)
class Problem:
    """One problem as data. `wording` and `names` change how it reads, never what it is."""

    family: str
    values: tuple[tuple[str, int], ...]
    wording: int
    names: str

    @property
    def id(self) -> str:
        """The same for every wording of the same problem."""
        return self.family + "/" + "-".join(str(value) for _, value in self.values)

    @property
    def split(self) -> str:
        """`train`, `val` or `test`, by a hash of family and values (the order of sides does not matter)."""
        key = f"{self.family}/{sorted(value for _, value in self.values)}"
        # Ten buckets: one for val, one for test, eight for training.
        bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
        if bucket == 8:
            return "val"
        if bucket == 9 or FAMILIES[self.family].held_out:
            return "test"
        return "train"

    @property
    def slice(self) -> str:
        """Which of `SLICES` the problem is in when a model trained on the `train` split is tested on it."""
        family = FAMILIES[self.family]
        if family.held_out:
            return "new families"
        if self.wording == len(family.wordings) - 1:
            return "new wordings"
        return "same families"

    @property
    def question(self) -> str:
        template = FAMILIES[self.family].wordings[self.wording]
        return fill_in(template, self.names, **dict(self.values))

    @property
    def answer(self) -> str:
        return FAMILIES[self.family].solve(dict(self.values))[1]

    @property
    def steps(self) -> list[str]:
        return FAMILIES[self.family].solve(dict(self.values))[0]

    @property
    def difficulty(self) -> str:
        """By the number of worked steps: `easy` (1-2), `medium` (3), `hard` (4 and more)."""
        return {1: "easy", 2: "easy", 3: "medium"}.get(len(self.steps), "hard")

    @property
    def solution(self) -> str:
        """The worked steps and the boxed answer in the house format."""
        steps = "\n".join(f"{number}. {step}" for number, step in enumerate(self.steps, 1))
        return f"### Solution\n{steps}\n### Final Answer\n\\boxed{{{self.answer}}}"


def fill_in(template: str, names: str, **values: int) -> str:
    """A wording with the points' names in place of {A} {B} {C} {D}, and with the values."""
    return template.format(A=names[0], B=names[1], C=names[2], D=names[3], **values)


def problems(
    split: str, n: int, seed: int = 0, slices: tuple[str, ...] = SLICES, wordings: Collection[int] = TRAINED
) -> Iterator[Problem]:
    """Draw `n` different problems of a split, the families in turn; the same for the same arguments.

    `train` holds the slice `same families` only, in these `wordings`. A problem may come in two wordings,
    never twice in one.

    Raises ValueError when the split has fewer than `n` problems.
    """
    # Fewer wordings are drawn by a seed of their own: sources with different wordings differ in problems too.
    suffix = ""
    if split == "train":
        slices = SLICES[:1]
        if set(wordings) != set(TRAINED):
            suffix = f"/{sorted(wordings)}"
    # A generator for each family, so that one that is exhausted leaves the others as they are.
    generators = {name: random.Random(f"{seed}/{split}/{name}{suffix}") for name in FAMILIES}
    drawn: set[tuple[str, int]] = set()

    def is_new(problem: Problem) -> bool:
        if problem.split != split or problem.slice not in slices:
            return False
        if split == "train" and problem.wording not in wordings:
            return False
        return (problem.id, problem.wording) not in drawn

    while generators and len(drawn) < n:
        for name in list(generators):
            problem = _draw_new(name, generators[name], is_new)
            if problem is None:
                del generators[name]
            elif len(drawn) < n:
                drawn.add((problem.id, problem.wording))
                yield problem
    if len(drawn) < n:
        raise ValueError(
            f"geometry: the {split} split has {len(drawn)} different problems, {n} were asked for"
        )


def problems_of_split(
    split: str, n: int, seed: int = 0, wordings: Collection[int] = TRAINED
) -> Iterator[Problem]:
    """`n` problems of a split, one slice after the other.

    val and test are for half of the slice `same families`, for a third of `new wordings` and for a sixth of
    `new families`. Raises ValueError when a slice has fewer problems.
    """
    if split == "train":
        yield from problems(split, n, seed, SLICES[:1], wordings)
        return
    rest = n - n // 3 - n // 6
    for slice_, part in zip(SLICES, (rest, n // 3, n // 6), strict=True):
        yield from problems(split, part, seed, (slice_,))


def _draw_new(name: str, generator: random.Random, is_new: Callable[[Problem], bool]) -> Problem | None:
    """The next new problem of a family; None when `ATTEMPTS` draws find none."""
    family = FAMILIES[name]
    for _ in range(ATTEMPTS):
        values = tuple(family.draw(generator).items())
        wording = generator.randrange(len(family.wordings))
        problem = Problem(name, values, wording, generator.choice(NAMES))
        if is_new(problem):
            return problem
    return None
