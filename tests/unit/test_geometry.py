"""The generated problems: right arithmetic, right answers, splits that share nothing."""

from __future__ import annotations

import ast
import itertools
import math
import operator
import re

import pytest

from school_geometry import problems as problems_module
from school_geometry.families import FAMILIES
from school_geometry.problems import SLICES, problems
from tunebook.checkers.maths import verify

TRAIN = list(problems("train", 1400, seed=0))
TEST = [p for name in SLICES for p in problems("test", 200, 0, (name,))]
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}

EXPECTED = {  # answers by another way than the generator's own
    "third_angle": lambda v: 180 - v["a"] - v["b"],
    "line_three": lambda v: 180 - v["a"] - v["b"],
    "round_point": lambda v: 360 - v["a"] - v["b"] - v["c"],
    "isosceles_apex": lambda v: 180 - 2 * v["a"],
    "exterior_angle": lambda v: v["a"] + v["b"],
    "cointerior": lambda v: 180 - v["a"],
    "semicircle": lambda v: 90 - v["a"],
    "central_angle": lambda v: 2 * v["a"],
    "rectangle_perimeter": lambda v: 2 * v["a"] + 2 * v["b"],
    "rectangle_area": lambda v: v["a"] * v["b"],
    "triangle_area": lambda v: v["a"] * v["b"] / 2,
    "trapezoid_area": lambda v: (v["a"] + v["b"]) / 2 * v["h"],
    "hypotenuse": lambda v: math.hypot(v["a"], v["b"]),
    "similar": lambda v: v["b"] * v["big"] / v["a"],
    "circle_area": lambda v: math.pi * (v["d"] / 2) ** 2,
    "quadrilateral": lambda v: 360 - v["a"] - v["b"] - v["c"],
    "right_triangle_angle": lambda v: 90 - v["a"],
    "cyclic_quadrilateral": lambda v: 180 - v["a"],
    "parallelogram_area": lambda v: v["a"] * v["b"],
    "isosceles_perimeter": lambda v: 2 * v["a"] + v["b"],
    "cuboid_volume": lambda v: v["a"] * v["b"] * v["c"],
}


def value(text: str) -> float:
    """The number that a LaTeX answer of the generator stands for."""
    if match := re.fullmatch(r"\\sqrt\{(\d+)\}", text):
        return math.sqrt(int(match[1]))
    return int(text.removesuffix(r"\pi") or 1) * (math.pi if text.endswith(r"\pi") else 1)


def evaluate(node: ast.AST) -> float:
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](evaluate(node.left), evaluate(node.right))
    assert isinstance(node, ast.Constant)
    return node.value


def test_every_answer_is_right():
    assert set(EXPECTED) == set(FAMILIES)
    for p in TRAIN + TEST:
        assert value(p.answer) == pytest.approx(EXPECTED[p.family](dict(p.values))), p.id
        assert value(p.answer) > 0, p.id


def test_every_step_is_right():
    """Each chain `a = b = c` in the worked steps holds, and the last one leads to the answer."""
    chains = 0
    for p in TRAIN + TEST:
        for step in p.steps:
            for chain in re.findall(r"\d[\d +*/^-]*(?:= [\d +*/^-]*\d)+", step):
                values = [
                    evaluate(ast.parse(part.strip().replace("^", "**"), mode="eval").body)
                    for part in chain.split("=")
                ]
                assert max(values) == min(values), (p.id, step)
                chains += 1
        assert re.findall(r"\d+", p.answer)[0] in p.steps[-1], p.id
    assert chains > 3000


def test_house_format_and_verification():
    for p in TRAIN[:300] + TEST[:100]:
        assert re.fullmatch(r"### Solution\n(\d\. .+\n)+### Final Answer\n\\boxed\{.+\}", p.solution), (
            p.solution
        )
        assert verify(p.solution, p.answer, boxed_only=True).correct
        assert p.difficulty in ("easy", "medium", "hard")
        assert "{" not in p.question


def test_at_least_14_families_in_several_wordings():
    trained = [f for f in FAMILIES.values() if not f.held_out]
    assert len(trained) >= 14
    assert len(FAMILIES) - len(trained) >= 4
    assert all(len(set(f.wordings)) == len(f.wordings) >= 4 for f in trained)


def test_splits_share_no_problem_whatever_the_seed():
    train = {p.id for seed in range(3) for p in problems("train", 1000, seed)}
    held_out = {p.id for split in ("val", "test") for seed in range(3) for p in problems(split, 150, seed)}
    assert not train & held_out
    assert not {p.id for p in problems("val", 90)} & {p.id for p in problems("test", 300)}


def test_held_out_families_and_wordings_are_not_trained_on():
    for p in TRAIN:
        assert p.slice == "same families"
        assert not FAMILIES[p.family].held_out
        assert p.wording < len(FAMILIES[p.family].wordings) - 1
    assert {p.slice for p in TEST} == set(SLICES)
    for p, name in itertools.product(TEST, SLICES):
        if p.slice == name == "new families":
            assert FAMILIES[p.family].held_out
        if p.slice == name == "new wordings":
            assert p.wording == len(FAMILIES[p.family].wordings) - 1


def test_no_question_twice_and_balanced():
    questions = [(p.id, p.wording) for p in TRAIN]
    assert len(set(questions)) == len(questions)
    counts = [
        sum(p.family == name for p in TRAIN) for name, family in FAMILIES.items() if not family.held_out
    ]
    assert min(counts) > 40


def test_asking_for_too_many_says_how_many_there_are(monkeypatch):
    monkeypatch.setattr(problems_module, "FAMILIES", {"circle_area": FAMILIES["circle_area"]})
    with pytest.raises(ValueError, match=r"the val split has \d+ different problems, 900 were asked for"):
        list(problems("val", 900))
