"""Figures for the school geometry problems, and a sample data set in the shape of THU-KEG/MM_Math.

A figure shows every number that its question needs and marks what is asked with `?`; the question itself
holds none, so that a model has to read the picture. Figures are true to shape, except that very small angles
and very long sides are drawn milder than they are.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from school_geometry.canvas import Canvas
from school_geometry.kinds import KINDS
from school_geometry.problems import Problem, fill_in, problems

FORMULA = re.compile(r"(?:\\sqrt\{\d+\}|\d[\d +*/^=-]*\d|\d)(?:\\pi)?")
"""What is written as a formula in a worked step: a number, a root, or a chain such as `3 + 4 = 7`."""


def draw(problem: Problem, size: int = 448) -> Image.Image:
    """The figure of a problem: RGB, `size` x `size` pixels, the same for the same problem."""
    return canvas(problem, size).image()


def canvas(problem: Problem, size: int = 448) -> Canvas:
    """The canvas that `draw` reduces to its image, with the labels' places."""
    result = Canvas(size, f"{problem.id}/{problem.wording}/{problem.names}")
    KINDS[problem.family].sketch(result, dict(problem.values), problem.names)
    return result


def question(problem: Problem) -> str:
    """What is asked about the figure. All numbers are in the picture, none is in the text."""
    templates = KINDS[problem.family].questions
    return fill_in(templates[problem.wording % len(templates)], problem.names)


def solution(problem: Problem) -> str:
    r"""The worked steps as a paragraph with LaTeX formulas that ends in `\boxed{}`, as MM_Math has them."""
    sentences = []
    for number, step in enumerate(problem.steps):
        text = FORMULA.sub(r"$\g<0>$", step).replace("*", r"\times").replace("/", r"\div")
        if not text.endswith("."):
            # A step that is a formula alone becomes a sentence.
            link = "Then" if number else "We have"
            text = f"{link} {text}."
        sentences.append(text)
    result = f"the value marked in the figure = $\\boxed{{{problem.answer}}}$."
    return f"Solution: {' '.join(sentences)} Therefore, {result}"


def write_sample(folder: Path, rows: int, seed: int) -> None:
    """Write `rows` problems with their figures as `images/<n>.png` and `MM_Math.jsonl`, all families in turn.

    The same call gives the same bytes. The problems are of the `train` split: who trains on them has seen no
    held-out problem.

    Raises ValueError when there are fewer problems, or when the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give another folder, or remove it")
    chosen = _chosen(rows, seed)
    # Under another name until it is whole, so that a drawing that was stopped is not taken for a sample.
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    with (partial / "MM_Math.jsonl").open("w", encoding="utf-8") as lines:
        for number, problem in enumerate(tqdm(chosen, desc="drawing", unit="figure", mininterval=1), 1):
            file_name = f"{number}.png"
            draw(problem).save(partial / "images" / file_name)
            lines.write(json.dumps(_row(problem, file_name), ensure_ascii=False) + "\n")
    partial.rename(folder)


def _row(problem: Problem, file_name: str) -> dict[str, str]:
    kind = KINDS[problem.family]
    return {
        "file_name": file_name,
        "question": question(problem),
        "solution": solution(problem),
        "difficult": problem.difficulty,
        "year": kind.year,
        "knowledge": kind.knowledge,
    }


def _chosen(rows: int, seed: int) -> list[Problem]:
    """Different problems in random order."""
    chosen = list(itertools.islice(_different(seed), rows))
    if len(chosen) < rows:
        raise ValueError(f"there are {len(chosen)} different problems, {rows} were asked for")
    random.Random(seed).shuffle(chosen)  # noqa: S311 - a seeded order, not a secret
    return chosen


def _different(seed: int) -> Iterator[Problem]:
    """Problems until there are no more, none twice, whatever its wording or the order of its values."""
    drawn: set[tuple[str, tuple[int, ...]]] = set()
    with contextlib.suppress(ValueError):  # the split is exhausted
        for problem in problems("train", 10**9, seed):
            key = problem.family, tuple(sorted(value for _, value in problem.values))
            if key not in drawn and _exists(problem):
                drawn.add(key)
                yield problem


def _exists(problem: Problem) -> bool:
    """Whether there is such a figure."""
    values = dict(problem.values)
    if problem.family == "isosceles_perimeter":
        # Equal sides can be too short to meet over their base.
        return 2 * values["a"] > values["b"]
    if problem.family == "quadrilateral":
        # A straight angle is no corner.
        return 180 not in (int(problem.answer), *values.values())
    return True
