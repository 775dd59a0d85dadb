"""Shapes with the angles and lengths of a problem, made milder where they would not be legible."""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Sequence


def clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def milder_angles(angles: Sequence[int], low: int) -> list[float]:
    """Angles in radians with the same sum, none below `low` degrees. The others give what that takes."""
    # How much each can give: an angle stays on its side of 180 degrees, or a corner would turn inside out.
    room = []
    for angle in angles:
        if angle > 200:
            room.append(angle - 200)
        elif angle >= 180:
            room.append(0)
        else:
            room.append(max(angle - low, 0))
    missing = sum(max(low - angle, 0) for angle in angles)
    milder = []
    for angle, gives in zip(angles, room, strict=True):
        milder.append(math.radians(max(angle, low) - missing * gives / sum(room)))
    return milder


def closer_lengths(a: float, b: float, ratio: float) -> tuple[float, float]:
    """Two lengths, neither more than `ratio` times the other."""
    return max(a, b / ratio), max(b, a / ratio)


def triangle(a: float, b: float) -> tuple[complex, complex, complex]:
    """Corners with the angles a and b (radians) at the ends of a base of length 1."""
    return 0, 1, cmath.rect(math.sin(b) / math.sin(a + b), a)


def quadrilateral(angles: Sequence[float]) -> list[complex]:
    """Corners with these angles (radians).

    Of all such shapes it is the one whose corners keep farthest from the sides that they are not on.
    """
    # Begin at the largest angle: then the last two sides, which close the shape, are never in line.
    first = max(range(4), key=lambda corner: angles[corner])
    turn = [0.0]
    for corner in (1, 2, 3):
        turn.append(turn[-1] + math.pi - angles[(first + corner) % 4])
    side = [cmath.rect(1, direction) for direction in turn]
    cross = (side[2].conjugate() * side[3]).imag

    # The first side has length 1 and the second 1.1**i. From their end the other two lead back to the start:
    # their directions are fixed, so their lengths solve two linear equations (by Cramer's rule).
    shapes = []
    for i in range(-20, 21):
        end = side[0] + 1.1**i * side[1]
        third = -(end.conjugate() * side[3]).imag / cross
        fourth = (end.conjugate() * side[2]).imag / cross
        if min(third, fourth) > 0:
            shapes.append([0, side[0], end, end + third * side[2]])
    best = max(shapes, key=_clearance)
    return [best[(corner - first) % 4] for corner in range(4)]


def _clearance(points: Sequence[complex]) -> float:
    """The least distance of a corner from a side that it is not on, relative to the extent."""
    gaps = []
    for i in range(4):
        for j in (i + 1, i + 2):
            gaps.append(_distance(points[i], points[j % 4], points[(j + 1) % 4]))
    return min(gaps) / max(abs(p - q) for p, q in itertools.combinations(points, 2))


def _distance(p: complex, a: complex, b: complex) -> float:
    """Of the point p from the line from a to b."""
    share = ((p - a) * (b - a).conjugate()).real / abs(b - a) ** 2
    return abs(p - a - clamp(share, 0, 1) * (b - a))
