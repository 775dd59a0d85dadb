"""Marks that several sketches share: angles of a polygon, angles between rays, heights."""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from school_geometry.canvas import Canvas


class AngleMark(NamedTuple):
    """An angle to label: clockwise at `corner` from `start` to `end`."""

    corner: complex
    start: complex
    end: complex
    text: str

    @property
    def turn(self) -> float:
        """From `end` to `start`, in radians from -π to π."""
        return cmath.phase((self.start - self.corner) / (self.end - self.corner))


def label_corners(
    c: Canvas,
    points: Sequence[complex],
    texts: Sequence[str | None],
    names: Iterable[str],
    middle: complex | None = None,
) -> None:
    """Angles and names of a polygon whose corners go round anticlockwise. None in `texts`: no angle there."""
    marks = []
    for i, text in enumerate(texts):
        if text:
            marks.append(AngleMark(points[i], points[i - 1], points[(i + 1) % len(points)], text))
    # Narrow angles first: they have the fewest places.
    for mark in sorted(marks, key=lambda mark: abs(mark.turn)):
        c.angle(*mark)
    if middle is None:
        middle = sum(points) / len(points)
    for point, name in zip(points, names, strict=False):
        c.name(point, name, point - middle)


def label_fan(c: Canvas, centre: complex, ends: Sequence[complex], texts: Sequence[str]) -> None:
    """Label the angles between neighbouring ends, which go round anticlockwise, the narrow ones first."""
    marks = []
    for (right, left), text in zip(itertools.pairwise(ends), texts, strict=True):
        marks.append(AngleMark(centre, left, right, text))
    for mark in sorted(marks, key=lambda mark: mark.turn % math.tau):
        c.angle(*mark)


def height(c: Canvas, top: complex, foot: complex, along: complex, text: str, inside: complex) -> None:
    """A dashed height with its right angle and label."""
    c.line(top, foot, dashed=True)
    c.right(foot, along, top)
    c.length(foot, top, text, inside)
