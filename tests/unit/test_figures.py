"""The figures: legible, complete and repeatable; the sample data set in MM_Math's shape."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from xml.etree import ElementTree

import pytest
from PIL import Image

from school_geometry import canvas, figures
from school_geometry.families import FAMILIES
from school_geometry.problems import NAMES, Problem
from tunebook.checkers.maths import verify
from tunebook.recipe.files import ROOT

DERIVED = {"similar": {"k"}, "circle_area": {"a"}}  # values that the worked steps compute
EXTREME = {
    "third_angle": [(10, 10), (10, 160), (160, 10)],
    "line_three": [(10, 10), (10, 160)],
    "round_point": [(20, 20, 20), (20, 20, 300), (180, 20, 20)],
    "isosceles_apex": [(15,), (85,)],
    "exterior_angle": [(10, 10), (10, 160), (160, 10)],
    "cointerior": [(20,), (160,)],
    "semicircle": [(5,), (85,)],
    "central_angle": [(10,), (89,)],
    "rectangle_perimeter": [(5, 75), (75, 5)],
    "triangle_area": [(3, 12), (12, 3)],
    "trapezoid_area": [(2, 10, 2), (9, 3, 10), (6, 6, 10)],
    "hypotenuse": [(2, 10), (10, 2)],
    "similar": [(2, 12, 6, 12), (12, 2, 6, 72)],
    "quadrilateral": [(20, 20, 300), (300, 20, 20), (20, 140, 20), (170, 150, 20)],
    "right_triangle_angle": [(5,), (85,)],
    "cyclic_quadrilateral": [(20,), (160,)],
    "parallelogram_area": [(3, 15), (12, 3)],
    "isosceles_perimeter": [(10, 15), (60, 5)],
    "cuboid_volume": [(2, 2, 9), (6, 6, 2)],
}


def some_problems(family: str, n: int) -> list[Problem]:
    """Extreme ones first, then random ones, in all wordings and names."""
    rng = random.Random(family)
    keys = list(FAMILIES[family].draw(rng))
    values = [tuple(zip(keys, v, strict=True)) for v in EXTREME.get(family, [])]
    values += [tuple(FAMILIES[family].draw(rng).items()) for _ in range(n)]
    return [
        Problem(family, v, rng.randrange(len(FAMILIES[family].wordings)), rng.choice(NAMES)) for v in values
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_legible_and_complete(family):
    for problem in some_problems(family, 25):
        c = figures.canvas(problem)
        margin = 4 * c.unit
        for label in c.labels:
            left, top, right, bottom = label.box
            assert margin < left < right < c.side - margin, (problem, label)
            assert margin < top < bottom < c.side - margin, (problem, label)
            assert c.strokes.crop((int(left), int(top), int(right) + 1, int(bottom) + 1)).getbbox() is None, (
                problem,
                label,
            )
        for a, b in itertools.combinations(c.labels, 2):
            apart = a.box[2] < b.box[0] or b.box[2] < a.box[0] or a.box[3] < b.box[1] or b.box[3] < a.box[1]
            assert apart, (problem, a, b)
        shown = re.findall(r"\d+", " ".join(label.text for label in c.labels))
        needed = [str(value) for key, value in problem.values if key not in DERIVED.get(family, ())]
        assert sorted(shown) == sorted(needed), problem
        assert sum(label.text.endswith("?") for label in c.labels) == 1, problem
        assert len({label.text for label in c.labels if label.text.isalpha()}) == sum(
            label.text.isalpha() for label in c.labels
        )
        left, top, right, bottom = c.strokes.getbbox()
        assert margin < min(left, top) and max(right, bottom) < c.side - margin, problem


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_hold_no_number_and_name_points_that_are_shown(family):
    for problem in some_problems(family, 12):
        text = figures.question(problem)
        assert not re.search(r"\d|[{}]", text), text
        assert re.search(r"degrees|centimetres|multiple of π", text), text
        shown = {label.text for label in figures.canvas(problem).labels}
        words = re.findall(r"\b[A-Z]{1,4}\b", text)
        named = {name for word in words if word != "A" for name in word}  # a sentence may begin with "A"
        assert named <= shown, (text, shown)
    assert len(set(figures.KINDS[family].questions)) == len(figures.KINDS[family].questions)


def test_every_family_has_a_kind():
    assert list(figures.KINDS) == list(FAMILIES)


def test_same_problem_same_pixels_other_values_other_pixels():
    for family in FAMILIES:
        one, *others = some_problems(family, 4)
        picture = figures.draw(one)
        assert picture.tobytes() == figures.draw(one).tobytes()
        for other in others:
            same = dict(other.values) == dict(one.values) and (other.wording, other.names) == (
                one.wording,
                one.names,
            )
            assert same or figures.draw(other).tobytes() != picture.tobytes()
    assert (picture.mode, picture.size) == ("RGB", (448, 448))
    assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_size_changes_nothing_but_the_size():
    for family in FAMILIES:
        for problem in some_problems(family, 1):
            small, large = (figures.canvas(problem, size) for size in (224, 896))
            assert figures.draw(problem, 224).size == (224, 224)
            for a, b in zip(small.labels, large.labels, strict=True):
                assert a.text == b.text
                assert abs(a.centre / small.side - b.centre / large.side) < 0.1, (problem, a.text)


@pytest.mark.parametrize("family", FAMILIES)
def test_figures_are_true_to_shape(family, monkeypatch):
    """Angles between 35 and 140 degrees are drawn at their size.

    Lengths that differ little are drawn in their ratio.
    """
    drawn: dict[str, float] = {}

    def angle(self, v, p, q, text, real=canvas.Canvas.angle):
        drawn[text] = math.degrees(self._sweep(v, p, q)[1])
        real(self, v, p, q, text)

    def length(self, p, q, text, inside, real=canvas.Canvas.length):
        drawn[text] = abs(p - q)
        real(self, p, q, text, inside)

    monkeypatch.setattr(canvas.Canvas, "angle", angle)
    monkeypatch.setattr(canvas.Canvas, "length", length)
    compared = 0
    for problem in some_problems(family, 60):
        drawn.clear()
        figures.canvas(problem)
        degrees = any("°" in text for text in drawn)
        sizes = {text: int(text.removesuffix("°").replace("?", problem.answer)) for text in drawn if degrees}
        if sizes and all(35 <= size <= 140 for size in sizes.values()):
            compared += 1
            assert all(drawn[text] == pytest.approx(size, abs=0.1) for text, size in sizes.items()), problem
        lengths = {
            text: int(text.removesuffix(" cm"))
            for text in drawn
            if "cm" in text and family not in ("similar", "cuboid_volume")
        }
        if len(lengths) > 1 and max(lengths.values()) < 1.6 * min(lengths.values()):
            compared += 1
            scales = [drawn[text] / size for text, size in lengths.items()]
            assert max(scales) == pytest.approx(min(scales)), problem
    assert compared >= 3 or family in ("similar", "cuboid_volume", "circle_area")


def test_a_label_without_room_is_an_error():
    c = canvas.Canvas(448, "full")
    a, b = c.fit(0, 1)
    for _ in range(40):
        c.line(a, b)
    with pytest.raises(ValueError, match="no room for the label"):
        for i in range(400):
            c.name(a, f"{i}", a - b)


@pytest.mark.parametrize("family", FAMILIES)
def test_solutions_are_prose_that_ends_in_the_answer(family):
    for problem in some_problems(family, 10):
        text = figures.solution(problem)
        assert "\n" not in text and "###" not in text and "*" not in text
        assert text.count("$") % 2 == 0
        assert text.endswith(f"\\boxed{{{problem.answer}}}$.")
        assert verify(text, problem.answer, boxed_only=True).correct


def test_sample_has_the_shape_of_mm_math_and_is_repeatable(tmp_path):
    for name in ("one", "two"):
        figures.write_sample(tmp_path / name, 63, seed=3)
    figures.write_sample(tmp_path / "other", 5, seed=4)
    files = {
        p.relative_to(tmp_path / "one"): p.read_bytes() for p in (tmp_path / "one").rglob("*") if p.is_file()
    }
    assert files == {
        p.relative_to(tmp_path / "two"): p.read_bytes() for p in (tmp_path / "two").rglob("*") if p.is_file()
    }
    assert not list(tmp_path.glob(".*"))
    rows = [json.loads(line) for line in (tmp_path / "one" / "MM_Math.jsonl").read_text().splitlines()]
    assert len(rows) == 63 and len(files) == 64
    for row in rows:
        assert set(row) == {"file_name", "question", "solution", "difficult", "year", "knowledge"}
        assert (
            row["difficult"] in ("easy", "medium", "hard")
            and row["year"] in ("seven", "eight", "nine")
            and ">" in row["knowledge"]
        )
        with Image.open(tmp_path / "one" / "images" / row["file_name"]) as image:
            assert (image.mode, image.size) == ("RGB", (448, 448))
    assert len({figure for name, figure in files.items() if name.suffix == ".png"}) == 63
    assert len({row["knowledge"] for row in rows}) == 15
    assert rows[0] != json.loads((tmp_path / "other" / "MM_Math.jsonl").read_text().splitlines()[0])


def test_sample_never_repeats_a_problem():
    chosen = figures._chosen(1000, 0)
    keys = {(p.family, tuple(sorted(v for _, v in p.values))) for p in chosen}
    assert len(keys) == 1000
    assert {p.split for p in chosen} == {"train"} and not any(FAMILIES[p.family].held_out for p in chosen)
    for p in chosen:
        v = dict(p.values)
        assert p.family != "isosceles_perimeter" or v["b"] < 2 * v["a"]
        assert p.family != "quadrilateral" or 180 not in (*v.values(), int(p.answer))


def test_sample_leaves_other_files_alone(tmp_path, monkeypatch):
    (tmp_path / "MM_Math.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        figures.write_sample(tmp_path, 3, seed=0)
    assert (tmp_path / "MM_Math.jsonl").read_text() == "mine"
    monkeypatch.setattr(figures, "problems", lambda *_: iter(some_problems("circle_area", 1)))
    with pytest.raises(ValueError, match="there are 1 different problems, 9 were asked for"):
        figures.write_sample(tmp_path / "new", 9, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["MM_Math.jsonl"]


def test_drawings_of_the_pipeline_are_whole_and_self_contained():
    for name in ("preprocessing", "sft", "dpo"):
        text = (ROOT / "resources" / f"mm_math_{name}.svg").read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag.endswith("svg")  # noqa: S314 - our own file
        assert re.findall(r'href="([^;"]+)', text) == ["data:image/png"] * text.count("<image ")
        assert "<image " in text
