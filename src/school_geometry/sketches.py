"""One sketch a family: the shape, the marks and the labels that a problem's figure shows.

A sketch gets the canvas, the problem's values and the points' names. Shapes are made in a plane of their own
and taken to the canvas by `fit`. The order of labels matters: each takes room from those that come after it.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterable, Sequence

from school_geometry import marks
from school_geometry.canvas import Canvas
from school_geometry.shapes import clamp, closer_lengths, milder_angles, quadrilateral, triangle
from school_geometry.solving import Values

Sketch = Callable[[Canvas, Values, str], None]


# What several sketches need


def _fan(c: Canvas, total: int, values: Values) -> tuple[list[float], list[str]]:
    """The given angles and the unknown one that fill `total` degrees, in random order, with their labels."""
    angles = [(angle, f"{angle}°") for angle in values.values()]
    angles.append((total - sum(values.values()), "?"))
    c.random.shuffle(angles)
    return milder_angles([angle for angle, _ in angles], 24), [text for _, text in angles]


def _isosceles(c: Canvas, points: Sequence[complex]) -> None:
    """A triangle (left corner, right corner, apex) with its marks of equal sides."""
    left, right, apex = points
    c.polygon(left, right, apex)
    c.ticks(left, apex)
    c.ticks(right, apex)


def _rectangle(c: Canvas, values: Values, names: str, caption: str, shaded: bool) -> None:
    a, b = closer_lengths(values["a"], values["b"], 2.6)
    points = c.fit(0, a, complex(a, b), 1j * b, caption=caption, margin=70)
    c.polygon(*points, shaded=shaded)
    c.right(points[0], points[1], points[3])
    middle = sum(points) / 4
    c.length(points[0], points[1], f"{values['a']} cm", middle)
    c.length(points[1], points[2], f"{values['b']} cm", middle)
    marks.label_corners(c, points, (), names)


# The sketches, in the order of `FAMILIES`


def third_angle(c: Canvas, values: Values, names: str) -> None:
    a, b = values["a"], values["b"]
    left, right, _ = milder_angles([a, b, 180 - a - b], 24)
    points = c.fit(*triangle(left, right), turn=True)
    c.polygon(*points)
    marks.label_corners(c, points, (f"{a}°", f"{b}°", "?"), names)


def line_three(c: Canvas, values: Values, names: str) -> None:
    angles, texts = _fan(c, 180, values)
    first = cmath.rect(0.95, angles[0])
    second = cmath.rect(0.95, angles[0] + angles[1])
    # The rays are a little shorter than the halves of the line.
    left, right, foot, *ends = c.fit(-1, 1, 0, first, second, turn=True)
    c.line(left, right)
    for end in ends:
        c.line(foot, end)
    marks.label_fan(c, foot, (right, *ends, left), texts)
    c.name(left, names[0], left - foot)
    c.name(right, names[1], right - foot)
    c.name(foot, names[2], 2 * foot - sum(ends))


def round_point(c: Canvas, values: Values, names: str) -> None:
    angles, texts = _fan(c, 360, values)
    start = c.random.uniform(0, math.tau)
    rays = [cmath.rect(1, start + sum(angles[:i])) for i in range(4)]
    centre, *ends = c.fit(0, *rays, margin=76)
    for end, name in zip(ends, names, strict=True):
        c.line(centre, end)
        c.name(end, name, end - centre)
    c.dot(centre)
    marks.label_fan(c, centre, (*ends, ends[0]), texts)


def isosceles_apex(c: Canvas, values: Values, names: str) -> None:
    base_angle = math.radians(clamp(values["a"], 24, 77))
    points = c.fit(*triangle(base_angle, base_angle), turn=True)
    _isosceles(c, points)
    marks.label_corners(c, points, (f"{values['a']}°", None, "?"), names[1] + names[2] + names[0])


def exterior_angle(c: Canvas, values: Values, names: str) -> None:
    a, b = values["a"], values["b"]
    left, right, _ = milder_angles([a, b, 180 - a - b], 28)
    # The corner of the exterior angle stands at the right end of the base, which goes on beyond it.
    b_at, c_at, a_at = triangle(right, math.pi - left - right)
    *corners, beyond = c.fit(b_at, c_at, a_at, c_at + 0.35, turn=True)
    c.polygon(*corners)
    c.line(corners[1], beyond)
    c.angle(corners[1], corners[2], beyond, "?")
    marks.label_corners(c, corners, (f"{b}°", None, f"{a}°"), names[1] + names[2] + names[0])
    c.name(beyond, names[3], beyond - corners[1])


def cointerior(c: Canvas, values: Values, names: str) -> None:
    angle = math.radians(clamp(values["a"], 35, 145))
    across = cmath.rect(0.8 / math.sin(angle), angle)
    # Both parallels, each from left to right: the upper one first.
    ends = [complex(x, y) for y in (across.imag / 2, -across.imag / 2) for x in (-1.1, 1.1)]
    # The line across goes on for 0.35 of its length beyond both.
    overhang = across * 0.35
    points = c.fit(-across / 2, across / 2, -across / 2 - overhang, across / 2 + overhang, *ends, turn=True)
    low, high, start, end, *ends = points
    c.line(start, end)
    for left, right in (ends[:2], ends[2:]):
        c.line(left, right)
        c.arrow(left, right, 0.12)
    c.angle(low, high, ends[3], f"{values['a']}°")
    c.angle(high, ends[1], low, "?")
    for point, name in zip(ends, names, strict=True):
        c.name(point, name, point - (low + high) / 2)


def semicircle(c: Canvas, values: Values, names: str) -> None:
    # By the theorem of the central angle, the apex stands at twice the angle at the left end.
    apex = cmath.rect(1, math.radians(2 * clamp(values["a"], 22, 68)))
    centre, left, right, apex, *_ = c.fit(0, -1, 1, apex, -1j, 1j, turn=True)
    c.circle(centre, left)
    c.polygon(left, right, apex)
    c.dot(centre)
    marks.label_corners(c, (left, right, apex), (f"{values['a']}°", "?", None), names, centre)
    c.name(centre, "O", centre - apex)


def central_angle(c: Canvas, values: Values, names: str) -> None:
    a = math.radians(clamp(values["a"], 22, 82))
    bottom = -math.pi / 2
    # A narrow angle stands upright: turned aside, its label would have no room.
    skew = 0
    if values["a"] > 35:
        skew = c.random.choice((-15, 0, 15))
    rim = [cmath.rect(1, turn) for turn in (bottom - a, bottom + a, math.pi / 2 + math.radians(skew))]
    centre, left, right, top, *_ = c.fit(0, *rim, -1, 1, 1j, -1j, turn=True)
    c.circle(centre, top)
    c.line(left, top, right)
    c.line(left, centre, right)
    c.dot(centre)
    c.angle(top, right, left, f"{values['a']}°")
    c.angle(centre, right, left, "?")
    for point, name in zip((left, right, top), names, strict=False):
        c.name(point, name, point - centre)
    c.name(centre, "O", 2 * centre - left - right)


def rectangle_perimeter(c: Canvas, values: Values, names: str) -> None:
    _rectangle(c, values, names, "Perimeter = ?", shaded=False)


def rectangle_area(c: Canvas, values: Values, names: str) -> None:
    _rectangle(c, values, names, "Area = ?", shaded=True)


def triangle_area(c: Canvas, values: Values, names: str) -> None:
    a, b = closer_lengths(values["a"], values["b"], 1.7)
    share = c.random.choice((0.3, 0.4))
    # The foot of the height lies off the middle: the triangle is not isosceles.
    left, right, top, foot = c.fit(0, a, complex(share * a, b), share * a, caption="Area = ?")
    c.polygon(left, right, top, shaded=True)
    marks.height(c, top, foot, right, f"{values['b']} cm", left)
    c.length(left, right, f"{values['a']} cm", top)
    marks.label_corners(c, (left, right, top), (), names)


def trapezoid_area(c: Canvas, values: Values, names: str) -> None:
    # The base is `b` and the upper side `a`; the height falls from an end of the shorter one.
    longest = max(values["a"], values["b"])
    a = max(values["a"], longest * 0.35)
    b = max(values["b"], longest * 0.35)
    h = clamp(values["h"], longest * 0.45, longest * 1.25)
    shift = max(0.6 * abs(a - b), 0.22 * longest)
    if a <= b:
        points: list[complex] = [0.0, b, shift + a + 1j * h, shift + 1j * h]
        start = points[3]
    else:
        points = [shift, shift + b, a + 1j * h, 1j * h]
        start = points[0]
    *points, start, foot = c.fit(*points, start, complex(start.real, h - start.imag), caption="Area = ?")
    c.polygon(*points, shaded=True)
    if a <= b:
        marks.height(c, start, foot, points[1], f"{values['h']} cm", points[0])
    else:
        marks.height(c, start, foot, points[2], f"{values['h']} cm", points[3])
    c.length(points[0], points[1], f"{values['b']} cm", points[2])
    c.length(points[2], points[3], f"{values['a']} cm", points[0])
    marks.label_corners(c, points, (), names)


def hypotenuse(c: Canvas, values: Values, names: str) -> None:
    a, b = closer_lengths(values["a"], values["b"], 2.6)
    corner, right, top = points = c.fit(0, a, 1j * b, turn=True, margin=70)
    c.polygon(*points)
    c.right(*points)
    c.length(corner, right, f"{values['a']} cm", top)
    c.length(corner, top, f"{values['b']} cm", right)
    c.length(right, top, "?", corner)
    marks.label_corners(c, points, (), names[2] + names[1] + names[0])


def similar(c: Canvas, values: Values, names: str) -> None:
    a, b = closer_lengths(values["a"], values["b"], 1.7)
    k = clamp(values["k"], 1.5, 1.8)
    small = [0, a, a + cmath.rect(b, math.radians(115))]
    low = min(p.real for p in small)
    width = max(p.real for p in small) - low
    large = [width * (1 + 0.27 * (1 + k)) + k * (p - low) for p in small]
    # Side by side, with more room between them the larger the second is.
    points = c.fit(*small, *large)
    _similar_triangle(c, points[:3], f"{values['a']} cm", f"{values['b']} cm", names)
    _similar_triangle(c, points[3:], f"{values['big']} cm", "?", [name + "'" for name in names])


def _similar_triangle(c: Canvas, points: Sequence[complex], a: str, b: str, names: Iterable[str]) -> None:
    """A triangle with its angles marked as equal to the other's, and the lengths of two sides."""
    p, q, r = points
    c.polygon(p, q, r)
    c.arcs(p, r, q)
    c.arcs(q, p, r, 2)
    c.length(p, q, a, r)
    c.length(q, r, b, p)
    marks.label_corners(c, points, (), names)


def circle_area(c: Canvas, values: Values, names: str) -> None:
    centre, left, right, *_ = c.fit(0, -1, 1, 1j, -1j, caption="Area = ?")
    c.circle(centre, left, shaded=True)
    c.line(left, right)
    c.dot(centre)
    c.length(left, right, f"{values['d']} cm", centre + 1j)
    c.name(left, names[0], left - right)
    c.name(right, names[1], right - left)
    c.name(centre, "O", 1j)


def quadrilateral_angle(c: Canvas, values: Values, names: str) -> None:
    angles = [*values.values(), 360 - sum(values.values())]
    points = c.fit(*quadrilateral(milder_angles(angles, 32)), turn=True)
    c.polygon(*points)
    texts = [f"{angle}°" for angle in values.values()]
    marks.label_corners(c, points, (*texts, "?"), names)


def right_triangle_angle(c: Canvas, values: Values, names: str) -> None:
    a = math.radians(clamp(values["a"], 22, 68))
    points = c.fit(0, 1, 1 + 1j * math.tan(a), turn=True)
    c.polygon(*points)
    c.right(points[1], points[0], points[2])
    marks.label_corners(c, points, (f"{values['a']}°", None, "?"), names[0] + names[2] + names[1])


def cyclic_quadrilateral(c: Canvas, values: Values, names: str) -> None:
    # An inscribed angle stands on an arc of twice its size: what is left of the circle is shared by the sides
    # that meet in this corner, a little unevenly.
    a = math.radians(clamp(values["a"], 40, 140))
    start = c.random.uniform(0, math.tau)
    rest = math.tau - 2 * a
    corners = [cmath.rect(1, start + turn) for turn in (0, 0.45 * rest, 0.45 * rest + a, -0.55 * rest)]
    # The circle's four outermost points are fitted too: all of it has to be on the canvas.
    centre, *points = c.fit(0, *corners, 1, -1, 1j, -1j)
    points = points[:4]
    c.circle(centre, points[0])
    c.polygon(*points)
    marks.label_corners(c, points, (f"{values['a']}°", None, "?", None), names, centre)


def parallelogram_area(c: Canvas, values: Values, names: str) -> None:
    a, b = closer_lengths(values["a"], values["b"], 2.2)
    shift = 0.3 * a
    *points, foot = c.fit(0, a, a + shift + 1j * b, shift + 1j * b, shift, caption="Area = ?")
    c.polygon(*points, shaded=True)
    marks.height(c, points[3], foot, points[1], f"{values['b']} cm", points[0])
    c.length(points[0], points[1], f"{values['a']} cm", points[2])
    marks.label_corners(c, points, (), names)


def isosceles_perimeter(c: Canvas, values: Values, names: str) -> None:
    base_angle = math.acos(clamp(values["b"] / values["a"], 0.5, 1.7) / 2)
    points = c.fit(*triangle(base_angle, base_angle), caption="Perimeter = ?", margin=62)
    left, right, apex = points
    _isosceles(c, points)
    c.length(left, right, f"{values['b']} cm", apex)
    c.length(right, apex, f"{values['a']} cm", left)
    marks.label_corners(c, points, (), names)


def cuboid_volume(c: Canvas, values: Values, names: str) -> None:
    longest = max(values.values())
    a, b, h = (max(side, 0.35 * longest) for side in values.values())
    depth = cmath.rect(0.6 * b, math.radians(38))
    front = [0, a, a + 1j * h, 1j * h]
    points = c.fit(*front, *(corner + depth for corner in front), caption="Volume = ?", margin=70)
    front, back = points[:4], points[4:]
    # Edges that can be seen are solid, the three behind are dashed.
    c.polygon(*front)
    c.line(front[1], back[1], back[2], back[3], front[3])
    c.line(front[2], back[2])
    for end in (front[0], back[1], back[3]):
        c.line(back[0], end, dashed=True)
    inside = sum(points) / 8
    c.length(front[0], front[1], f"{values['a']} cm", inside)
    c.length(front[1], back[1], f"{values['b']} cm", inside)
    c.length(front[0], front[3], f"{values['c']} cm", inside)
