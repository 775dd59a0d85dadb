"""Figures for the school geometry problems, and a sample data set in the shape in which THU-KEG/MM_Math is downloaded.

A figure shows every number that its question needs and marks what is asked with `?`; the question itself holds none,
so that a model has to read the picture. Figures are true to shape, except that very small angles and very long sides
are drawn milder than they are.
"""

from __future__ import annotations

import cmath
import contextlib
import itertools
import json
import math
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from school_geometry.canvas import Canvas
from school_geometry.problems import Problem, Values, problems

Sketch = Callable[[Canvas, Values, str], None]


@dataclass(frozen=True)
class Kind:
    """How the problems of a family look in a picture. `sketch` gets the canvas, the values and the points' names."""

    sketch: Sketch
    year: str
    knowledge: str
    questions: tuple[str, ...]
    """Templates over {A} {B} {C} {D}, without a number."""


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
    return templates[problem.wording % len(templates)].format(**dict(zip("ABCD", problem.names, strict=True)))


def solution(problem: Problem) -> str:
    r"""The worked steps as a paragraph with LaTeX formulas that ends in `\boxed{}`, as MM_Math has them."""
    formula = re.compile(r"(?:\\sqrt\{\d+\}|\d[\d +*/^=-]*\d|\d)(?:\\pi)?")
    latex = [
        formula.sub(r"$\g<0>$", step).replace("*", r"\times").replace("/", r"\div") for step in problem.steps
    ]
    sentences = [
        step if step.endswith(".") else f"{link} {step}."
        for link, step in zip(("We have", *["Then"] * len(latex)), latex, strict=False)
    ]
    return f"Solution: {' '.join(sentences)} Therefore, the value marked in the figure = $\\boxed{{{problem.answer}}}$."


def write_sample(folder: Path, rows: int, seed: int) -> None:
    """Write `rows` problems with their figures as `images/<n>.png` and `MM_Math.jsonl`, all families in turn.

    The same call gives the same bytes. The problems are of the `train` split: who trains on them has seen no held-out problem.
    Raises ValueError when there are fewer problems, or when the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: give another folder, or remove it")
    chosen = _chosen(rows, seed)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    with (partial / "MM_Math.jsonl").open("w", encoding="utf-8") as lines:
        for number, problem in enumerate(tqdm(chosen, desc="drawing", unit="figure", mininterval=1), 1):
            draw(problem).save(partial / "images" / f"{number}.png")
            lines.write(json.dumps(_row(problem, f"{number}.png"), ensure_ascii=False) + "\n")
    partial.rename(folder)


def _row(problem: Problem, file_name: str) -> dict[str, str]:
    kind = KINDS[problem.family]
    row = {"file_name": file_name, "question": question(problem), "solution": solution(problem)}
    return row | {"difficult": problem.difficulty, "year": kind.year, "knowledge": kind.knowledge}


def _chosen(rows: int, seed: int) -> list[Problem]:
    """Different problems in random order."""
    chosen = list(itertools.islice(_different(seed), rows))
    if len(chosen) < rows:
        raise ValueError(f"there are {len(chosen)} different problems, {rows} were asked for")
    random.Random(seed).shuffle(chosen)  # noqa: S311 - a seeded order, not a secret
    return chosen


def _different(seed: int) -> Iterator[Problem]:
    """Problems until there are no more, none twice, whatever its wording or the order of its values."""
    seen: set[tuple[str, tuple[int, ...]]] = set()
    with contextlib.suppress(ValueError):  # the split is exhausted
        for problem in problems("train", 10**9, seed):
            key = problem.family, tuple(sorted(value for _, value in problem.values))
            if key not in seen and _exists(problem):
                seen.add(key)
                yield problem


def _exists(problem: Problem) -> bool:
    """Whether there is such a figure: equal sides can be too short to meet over their base, and a straight angle is no corner."""
    values = dict(problem.values)
    if problem.family == "isosceles_perimeter":
        return 2 * values["a"] > values["b"]
    return problem.family != "quadrilateral" or "180" not in (problem.answer, *map(str, values.values()))


# Legible shapes


def _milder(angles: Sequence[int], low: int) -> list[float]:
    """Angles in radians with the same sum, none below `low` degrees. The others give what that takes, each on its side of 180."""
    room = [a - 200 if a > 200 else 0 if a >= 180 else max(a - low, 0) for a in angles]
    missing = sum(max(low - a, 0) for a in angles)
    return [math.radians(max(a, low) - missing * r / sum(room)) for a, r in zip(angles, room, strict=True)]


def _between(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _closer(a: float, b: float, most: float) -> tuple[float, float]:
    """Two lengths, neither more than `most` times the other."""
    return max(a, b / most), max(b, a / most)


def _triangle(a: float, b: float) -> tuple[complex, complex, complex]:
    """Corners with the angles a and b (radians) at the ends of a base of length 1."""
    return 0, 1, cmath.rect(math.sin(b) / math.sin(a + b), a)


def _quadrilateral(angles: Sequence[float]) -> list[complex]:
    """Corners with these angles (radians); of all such shapes the one whose corners keep farthest from the other sides."""
    first = max(
        range(4), key=lambda i: angles[i]
    )  # so that the last two sides, which close the shape, are never in line
    turn = [0.0]
    for angle in (angles[(first + i) % 4] for i in (1, 2, 3)):
        turn.append(turn[-1] + math.pi - angle)
    u = [cmath.rect(1, t) for t in turn]
    cross = (u[2].conjugate() * u[3]).imag
    shapes = []
    for i in range(-20, 21):
        two = u[0] + 1.1**i * u[1]  # the other two sides lead back from here
        third, fourth = -(two.conjugate() * u[3]).imag / cross, (two.conjugate() * u[2]).imag / cross
        if min(third, fourth) > 0:
            shapes.append([0, u[0], two, two + third * u[2]])
    best = max(shapes, key=_clearance)
    return [best[(i - first) % 4] for i in range(4)]


def _clearance(points: Sequence[complex]) -> float:
    """The least distance of a corner of a quadrilateral from a side that it is not on, relative to its longest extent."""
    gaps = [
        _distance(points[i], points[j % 4], points[(j + 1) % 4]) for i in range(4) for j in (i + 1, i + 2)
    ]
    return min(gaps) / max(abs(p - q) for p in points for q in points)


def _distance(p: complex, a: complex, b: complex) -> float:
    """Of the point p from the line from a to b."""
    share = ((p - a) * (b - a).conjugate()).real / abs(b - a) ** 2
    return abs(p - a - _between(share, 0, 1) * (b - a))


def _corners(
    c: Canvas,
    points: Sequence[complex],
    texts: Sequence[str | None],
    names: Sequence[str],
    middle: complex | None = None,
) -> None:
    """Angles and names of a polygon whose corners go round anticlockwise. Narrow angles first: they have the fewest places."""
    n = len(points)
    marks = [(points[i], points[i - 1], points[(i + 1) % n], text) for i, text in enumerate(texts) if text]
    for v, p, q, text in sorted(marks, key=lambda m: abs(cmath.phase((m[1] - m[0]) / (m[2] - m[0])))):
        c.angle(v, p, q, text)
    centre = sum(points) / n if middle is None else middle
    for point, name in zip(points, names, strict=False):
        c.name(point, name, point - centre)


# Sketches, one a family, in the order of `geometry.FAMILIES`


def _third_angle(c: Canvas, v: Values, names: str) -> None:
    a, b, _ = _milder([v["a"], v["b"], 180 - v["a"] - v["b"]], 24)
    points = c.fit(*_triangle(a, b), turn=True)
    c.polygon(*points)
    _corners(c, points, (f"{v['a']}°", f"{v['b']}°", "?"), names)


def _fan(c: Canvas, total: int, values: Values) -> tuple[list[float], list[str]]:
    """The given angles and the unknown one that fill `total` degrees, in random order, with their labels."""
    angles = [(a, f"{a}°") for a in values.values()]
    angles.append((total - sum(values.values()), "?"))
    c.random.shuffle(angles)
    return _milder([a for a, _ in angles], 24), [text for _, text in angles]


def _rays(c: Canvas, centre: complex, ends: Sequence[complex], texts: Sequence[str]) -> None:
    """Label the angles between neighbouring ends, which go round anticlockwise, the narrow ones first."""
    marks = list(zip(ends[1:], ends, texts, strict=False))
    for p, q, text in sorted(
        marks, key=lambda m: (cmath.phase((m[0] - centre) / (m[1] - centre))) % math.tau
    ):
        c.angle(centre, p, q, text)


def _line_three(c: Canvas, v: Values, names: str) -> None:
    angles, texts = _fan(c, 180, v)
    first, second = cmath.rect(0.95, angles[0]), cmath.rect(0.95, angles[0] + angles[1])
    left, right, foot, *ends = c.fit(-1, 1, 0, first, second, turn=True)
    c.line(left, right)
    for end in ends:
        c.line(foot, end)
    _rays(c, foot, (right, *ends, left), texts)
    for point, name, away in (
        (left, names[0], left - foot),
        (right, names[1], right - foot),
        (foot, names[2], 2 * foot - sum(ends)),
    ):
        c.name(point, name, away)


def _round_point(c: Canvas, v: Values, names: str) -> None:
    angles, texts = _fan(c, 360, v)
    start = c.random.uniform(0, math.tau)
    directions = [start + sum(angles[:i]) for i in range(4)]
    centre, *ends = c.fit(0, *(cmath.rect(1, d) for d in directions), margin=76)
    for end, name in zip(ends, names, strict=True):
        c.line(centre, end)
        c.name(end, name, end - centre)
    c.dot(centre)
    _rays(c, centre, (*ends, ends[0]), texts)


def _isosceles(c: Canvas, base_angle: float, **fit: str | bool | int) -> list[complex]:
    """Draw the triangle with its marks of equal sides; returns left corner, right corner and apex."""
    left, right, apex = points = c.fit(*_triangle(base_angle, base_angle), **fit)  # type: ignore[arg-type]
    c.polygon(*points)
    c.ticks(left, apex)
    c.ticks(right, apex)
    return points


def _isosceles_apex(c: Canvas, v: Values, names: str) -> None:
    points = _isosceles(c, math.radians(_between(v["a"], 24, 77)), turn=True)
    _corners(c, points, (f"{v['a']}°", None, "?"), names[1] + names[2] + names[0])


def _exterior_angle(c: Canvas, v: Values, names: str) -> None:
    a, b, _ = _milder([v["a"], v["b"], 180 - v["a"] - v["b"]], 28)
    b_at, c_at, a_at = _triangle(b, math.pi - a - b)
    *corners, beyond = c.fit(b_at, c_at, a_at, c_at + 0.35, turn=True)
    c.polygon(*corners)
    c.line(corners[1], beyond)
    c.angle(corners[1], corners[2], beyond, "?")
    _corners(c, corners, (f"{v['b']}°", None, f"{v['a']}°"), names[1] + names[2] + names[0])
    c.name(beyond, names[3], beyond - corners[1])


def _cointerior(c: Canvas, v: Values, names: str) -> None:
    across = cmath.rect(0.8 / math.sin(angle := math.radians(_between(v["a"], 35, 145))), angle)
    low, high = -across / 2, across / 2
    ends = [complex(x, p.imag) for p in (high, low) for x in (-1.1, 1.1)]
    low, high, start, end, *ends = c.fit(
        low, high, low - across * 0.35, high + across * 0.35, *ends, turn=True
    )
    c.line(start, end)
    for left, right in (ends[:2], ends[2:]):
        c.line(left, right)
        c.arrow(left, right, 0.12)
    texts = [f"{v['a']}°", "?"]
    c.angle(low, high, ends[3], texts[0])
    c.angle(high, ends[1], low, texts[1])
    for point, name in zip(ends, names, strict=True):
        c.name(point, name, point - (low + high) / 2)


def _semicircle(c: Canvas, v: Values, names: str) -> None:
    apex = cmath.rect(1, math.radians(2 * _between(v["a"], 22, 68)))
    centre, left, right, apex, *_ = c.fit(0, -1, 1, apex, -1j, 1j, turn=True)
    c.circle(centre, left)
    c.polygon(left, right, apex)
    c.dot(centre)
    _corners(c, (left, right, apex), (f"{v['a']}°", "?", None), names, centre)
    c.name(centre, "O", centre - apex)


def _central_angle(c: Canvas, v: Values, names: str) -> None:
    a = math.radians(_between(v["a"], 22, 82))
    low, skew = -math.pi / 2, math.radians(c.random.choice((-15, 0, 15)) if v["a"] > 35 else 0)
    rim = [cmath.rect(1, t) for t in (low - a, low + a, math.pi / 2 + skew)]
    centre, left, right, top, *_ = c.fit(0, *rim, -1, 1, 1j, -1j, turn=True)
    c.circle(centre, top)
    c.line(left, top, right)
    c.line(left, centre, right)
    c.dot(centre)
    c.angle(top, right, left, f"{v['a']}°")
    c.angle(centre, right, left, "?")
    for point, name in zip((left, right, top), names, strict=False):
        c.name(point, name, point - centre)
    c.name(centre, "O", 2 * centre - left - right)


def _rectangle(c: Canvas, v: Values, names: str, caption: str, shaded: bool) -> None:
    a, b = _closer(v["a"], v["b"], 2.6)
    points = c.fit(0, a, complex(a, b), 1j * b, caption=caption, margin=70)
    c.polygon(*points, shaded=shaded)
    c.right(points[0], points[1], points[3])
    middle = sum(points) / 4
    c.length(points[0], points[1], f"{v['a']} cm", middle)
    c.length(points[1], points[2], f"{v['b']} cm", middle)
    _corners(c, points, (), names)


def _rectangle_perimeter(c: Canvas, v: Values, names: str) -> None:
    _rectangle(c, v, names, "Perimeter = ?", shaded=False)


def _rectangle_area(c: Canvas, v: Values, names: str) -> None:
    _rectangle(c, v, names, "Area = ?", shaded=True)


def _height(c: Canvas, top: complex, foot: complex, along: complex, text: str, inside: complex) -> None:
    """A dashed height with its right angle and label."""
    c.line(top, foot, dashed=True)
    c.right(foot, along, top)
    c.length(foot, top, text, inside)


def _triangle_area(c: Canvas, v: Values, names: str) -> None:
    a, b = _closer(v["a"], v["b"], 1.7)
    share = c.random.choice((0.3, 0.4))
    left, right, top, foot = c.fit(0, a, complex(share * a, b), share * a, caption="Area = ?")
    c.polygon(left, right, top, shaded=True)
    _height(c, top, foot, right, f"{v['b']} cm", left)
    c.length(left, right, f"{v['a']} cm", top)
    _corners(c, (left, right, top), (), names)


def _trapezoid_area(c: Canvas, v: Values, names: str) -> None:
    long = max(v["a"], v["b"])
    a, b = max(v["a"], long * 0.35), max(v["b"], long * 0.35)
    h, shift = _between(v["h"], long * 0.45, long * 1.25), max(0.6 * abs(a - b), 0.22 * long)
    low, high = (0.0, shift) if a <= b else (shift, 0.0)
    points: list[complex] = [low, low + b, high + a + 1j * h, high + 1j * h]
    start = points[3] if a <= b else points[0]
    *points, start, foot = c.fit(*points, start, complex(start.real, h - start.imag), caption="Area = ?")
    c.polygon(*points, shaded=True)
    _height(
        c, start, foot, points[1] if a <= b else points[2], f"{v['h']} cm", points[0] if a <= b else points[3]
    )
    c.length(points[0], points[1], f"{v['b']} cm", points[2])
    c.length(points[2], points[3], f"{v['a']} cm", points[0])
    _corners(c, points, (), names)


def _hypotenuse(c: Canvas, v: Values, names: str) -> None:
    a, b = _closer(v["a"], v["b"], 2.6)
    corner, right, top = points = c.fit(0, a, 1j * b, turn=True, margin=70)
    c.polygon(*points)
    c.right(*points)
    c.length(corner, right, f"{v['a']} cm", top)
    c.length(corner, top, f"{v['b']} cm", right)
    c.length(right, top, "?", corner)
    _corners(c, points, (), names[2] + names[1] + names[0])


def _similar(c: Canvas, v: Values, names: str) -> None:
    a, b = _closer(v["a"], v["b"], 1.7)
    shape = [0, a, a + cmath.rect(b, math.radians(115))]
    k = _between(v["k"], 1.5, 1.8)
    width, low = max(p.real for p in shape) - min(p.real for p in shape), min(p.real for p in shape)
    points = c.fit(*shape, *(width * (1 + 0.27 * (1 + k)) + k * (p - low) for p in shape))
    for (p, q, r), texts, mark in (
        (points[:3], (f"{v['a']} cm", f"{v['b']} cm"), ""),
        (points[3:], (f"{v['big']} cm", "?"), "'"),
    ):
        c.polygon(p, q, r)
        c.arcs(p, r, q)
        c.arcs(q, p, r, 2)
        c.length(p, q, texts[0], r)
        c.length(q, r, texts[1], p)
        _corners(c, (p, q, r), (), [name + mark for name in names])


def _circle_area(c: Canvas, v: Values, names: str) -> None:
    centre, left, right, *_ = c.fit(0, -1, 1, 1j, -1j, caption="Area = ?")
    c.circle(centre, left, shaded=True)
    c.line(left, right)
    c.dot(centre)
    c.length(left, right, f"{v['d']} cm", centre + 1j)
    c.name(left, names[0], left - right)
    c.name(right, names[1], right - left)
    c.name(centre, "O", 1j)


def _quadrilateral_sketch(c: Canvas, v: Values, names: str) -> None:
    angles = [*v.values(), 360 - sum(v.values())]
    points = c.fit(*_quadrilateral(_milder(angles, 32)), turn=True)
    c.polygon(*points)
    _corners(c, points, (*(f"{a}°" for a in angles[:3]), "?"), names)


def _right_triangle_angle(c: Canvas, v: Values, names: str) -> None:
    a = math.radians(_between(v["a"], 22, 68))
    points = c.fit(0, 1, 1 + 1j * math.tan(a), turn=True)
    c.polygon(*points)
    c.right(points[1], points[0], points[2])
    _corners(c, points, (f"{v['a']}°", None, "?"), names[0] + names[2] + names[1])


def _cyclic_quadrilateral(c: Canvas, v: Values, names: str) -> None:
    a, start = math.radians(_between(v["a"], 40, 140)), c.random.uniform(0, math.tau)
    turns = (0, 0.45 * (math.tau - 2 * a), 0.45 * (math.tau - 2 * a) + a, -0.55 * (math.tau - 2 * a))
    points = [cmath.rect(1, start + t) for t in turns]
    centre, *points = c.fit(0, *points, 1, -1, 1j, -1j)
    points = points[:4]
    c.circle(centre, points[0])
    c.polygon(*points)
    _corners(c, points, (f"{v['a']}°", None, "?", None), names, centre)


def _parallelogram_area(c: Canvas, v: Values, names: str) -> None:
    a, b = _closer(v["a"], v["b"], 2.2)
    shift = 0.3 * a
    *points, foot = c.fit(0, a, a + shift + 1j * b, shift + 1j * b, shift, caption="Area = ?")
    c.polygon(*points, shaded=True)
    _height(c, points[3], foot, points[1], f"{v['b']} cm", points[0])
    c.length(points[0], points[1], f"{v['a']} cm", points[2])
    _corners(c, points, (), names)


def _isosceles_perimeter(c: Canvas, v: Values, names: str) -> None:
    left, right, apex = points = _isosceles(
        c, math.acos(_between(v["b"] / v["a"], 0.5, 1.7) / 2), caption="Perimeter = ?", margin=62
    )
    c.length(left, right, f"{v['b']} cm", apex)
    c.length(right, apex, f"{v['a']} cm", left)
    _corners(c, points, (), names)


def _cuboid_volume(c: Canvas, v: Values, names: str) -> None:
    long = max(v.values())
    a, b, h = (max(side, 0.35 * long) for side in v.values())
    depth = cmath.rect(0.6 * b, math.radians(38))
    front = [0, a, a + 1j * h, 1j * h]
    points = c.fit(*front, *(p + depth for p in front), caption="Volume = ?", margin=70)
    front, back = points[:4], points[4:]
    c.polygon(*front)
    c.line(front[1], back[1], back[2], back[3], front[3])
    c.line(front[2], back[2])
    for end in (front[0], back[1], back[3]):
        c.line(back[0], end, dashed=True)
    inside = sum(points) / 8
    for p, q, side in ((front[0], front[1], "a"), (front[1], back[1], "b"), (front[0], front[3], "c")):
        c.length(p, q, f"{v[side]} cm", inside)


MARKED = "Find the size of the angle marked ? in the figure, in degrees."
AREA = "Use the measurements in the figure to find the area, in square centimetres."
KINDS: dict[str, Kind] = {
    "third_angle": Kind(
        _third_angle,
        "seven",
        "Triangles>Angle sum of a triangle",
        ("In triangle {A}{B}{C} in the figure, find angle {C} in degrees.", MARKED),
    ),
    "line_three": Kind(
        _line_three,
        "seven",
        "Lines and angles>Angles on a straight line",
        ("In the figure, {A}, {C} and {B} lie on a straight line. " + MARKED, MARKED),
    ),
    "round_point": Kind(
        _round_point,
        "seven",
        "Lines and angles>Angles round a point",
        (
            "Four rays start from one point, as shown. " + MARKED,
            "How many degrees is the angle marked ? in the figure?",
        ),
    ),
    "isosceles_apex": Kind(
        _isosceles_apex,
        "eight",
        "Triangles>Isosceles triangles",
        (
            "In the figure, {A}{B} = {A}{C}. Find angle {A} in degrees.",
            "The marked sides of the triangle in the figure are equal. " + MARKED,
        ),
    ),
    "exterior_angle": Kind(
        _exterior_angle,
        "eight",
        "Triangles>Exterior angles",
        ("In the figure, {D} lies on the extension of {B}{C}. Find angle {A}{C}{D} in degrees.", MARKED),
    ),
    "cointerior": Kind(
        _cointerior,
        "seven",
        "Lines and angles>Parallel lines",
        (
            "In the figure, {A}{B} is parallel to {C}{D}. " + MARKED,
            "The lines with arrows in the figure are parallel. " + MARKED,
        ),
    ),
    "semicircle": Kind(
        _semicircle,
        "nine",
        "Circles>Angle in a semicircle",
        (
            "In the figure, {A}{B} is a diameter of the circle with centre O. Find angle {B} of triangle {A}{B}{C} in degrees.",
        ),
    ),
    "central_angle": Kind(
        _central_angle,
        "nine",
        "Circles>Inscribed and central angles",
        ("In the figure, {A}, {B} and {C} lie on the circle with centre O. Find angle {A}O{B} in degrees.",),
    ),
    "rectangle_perimeter": Kind(
        _rectangle_perimeter,
        "seven",
        "Quadrilaterals>Perimeter of a rectangle",
        (
            "Find the perimeter of rectangle {A}{B}{C}{D} in the figure, in centimetres.",
            "How many centimetres is it round the rectangle in the figure?",
        ),
    ),
    "rectangle_area": Kind(
        _rectangle_area,
        "seven",
        "Quadrilaterals>Area of a rectangle",
        ("What is the area of the rectangle in the figure, in square centimetres?", AREA),
    ),
    "triangle_area": Kind(
        _triangle_area,
        "seven",
        "Triangles>Area of a triangle",
        ("What is the area of triangle {A}{B}{C} in the figure, in square centimetres?", AREA),
    ),
    "trapezoid_area": Kind(
        _trapezoid_area,
        "eight",
        "Quadrilaterals>Area of a trapezoid",
        (
            "In trapezoid {A}{B}{C}{D} in the figure, {A}{B} is parallel to {C}{D}. Find its area in square centimetres.",
            AREA,
        ),
    ),
    "hypotenuse": Kind(
        _hypotenuse,
        "eight",
        "Triangles>Pythagorean theorem",
        (
            "In the figure, find {A}{B} in centimetres. Give the exact value, as a root where it is not a whole number.",
        ),
    ),
    "similar": Kind(
        _similar,
        "nine",
        "Triangles>Similar triangles",
        (
            "Triangles {A}{B}{C} and {A}'{B}'{C}' in the figure are similar. Find {B}'{C}' in centimetres.",
            "The two triangles in the figure are similar. Find the side marked ?, in centimetres.",
        ),
    ),
    "circle_area": Kind(
        _circle_area,
        "nine",
        "Circles>Area of a circle",
        (
            "In the figure, {A}{B} is a diameter of the circle. Find the area of the circle in square centimetres, as a multiple of π.",
        ),
    ),
    "quadrilateral": Kind(
        _quadrilateral_sketch,
        "eight",
        "Quadrilaterals>Angle sum of a quadrilateral",
        ("Find the interior angle of quadrilateral {A}{B}{C}{D} at {D}, in degrees.", MARKED),
    ),
    "right_triangle_angle": Kind(
        _right_triangle_angle,
        "seven",
        "Triangles>Right triangles",
        ("In right triangle {A}{B}{C} in the figure, find angle {B} in degrees.", MARKED),
    ),
    "cyclic_quadrilateral": Kind(
        _cyclic_quadrilateral,
        "nine",
        "Circles>Cyclic quadrilaterals",
        (
            "In the figure, {A}, {B}, {C} and {D} lie on a circle. Find angle {C} of quadrilateral {A}{B}{C}{D} in degrees.",
        ),
    ),
    "parallelogram_area": Kind(
        _parallelogram_area,
        "eight",
        "Quadrilaterals>Area of a parallelogram",
        ("What is the area of parallelogram {A}{B}{C}{D} in the figure, in square centimetres?", AREA),
    ),
    "isosceles_perimeter": Kind(
        _isosceles_perimeter,
        "eight",
        "Triangles>Isosceles triangles",
        ("The marked sides of the triangle in the figure are equal. Find its perimeter in centimetres.",),
    ),
    "cuboid_volume": Kind(
        _cuboid_volume,
        "nine",
        "Solids>Volume of a cuboid",
        ("What is the volume of the cuboid in the figure, in cubic centimetres?",),
    ),
}
