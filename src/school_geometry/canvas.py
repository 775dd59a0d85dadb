"""A canvas for labelled geometry figures: strokes first, then labels where there is room for them.

Points are complex numbers. `fit` takes them from the plane of the problem (y upwards) to pixels (y
downwards); every other method works in pixels. A label is tried at one place after another until its box is
free of strokes and of other labels, so that nothing in a figure is illegible whatever the values are.
"""

from __future__ import annotations

import cmath
import functools
import itertools
import math
import random
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SCALE = 3  # drawn so much larger and reduced, for smooth lines
UNITS = 448  # a canvas is so many units wide, whatever its pixels; lengths below are in units
MARGIN = 42  # round the points of the figure, for the names outside it
EDGE = 7  # what stays white round everything
GAP = 4  # round a label


class Box(NamedTuple):
    """A rectangle in pixels of the enlarged canvas."""

    left: float
    top: float
    right: float
    bottom: float

    def grown(self, by: float) -> Box:
        return Box(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def overlaps(self, other: Box) -> bool:
        beside = self.left > other.right or self.right < other.left
        above_or_below = self.top > other.bottom or self.bottom < other.top
        return not beside and not above_or_below

    def holds(self, p: complex) -> bool:
        return self.left <= p.real <= self.right and self.top <= p.imag <= self.bottom


class Label(NamedTuple):
    """A text and the pixels that it covers on the enlarged canvas."""

    text: str
    centre: complex
    box: Box


class Canvas:
    """A square of `size` pixels. `seed` decides whether the figure is mirrored and how far it is turned.

    Every method that places a label raises ValueError when it finds no room for it.
    """

    def __init__(self, size: int, seed: str) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a seeded drawing, not a secret
        # Mirrored and turned, so that a model cannot learn that angle A is always at the lower left.
        self.mirrored = self.random.random() < 0.5
        self.turned = math.radians(self.random.uniform(-20, 20))
        self.side = size * SCALE
        self.unit = self.side / UNITS
        self.strokes = Image.new("L", (self.side, self.side))
        """The lines alone, as ink (255 is black)."""
        self.labels: list[Label] = []
        self._shade = Image.new("L", (self.side, self.side), 255)
        self._pen = ImageDraw.Draw(self.strokes)
        self._font = _font(round(25 * self.unit))

    def image(self) -> Image.Image:
        """The finished figure, RGB."""
        # From the bottom up: shaded areas, lines, labels. The lines are a mask: shading shows beside them.
        picture = self._shade.copy()
        picture.paste(0, mask=self.strokes)
        write = ImageDraw.Draw(picture)
        for label in self.labels:
            write.text((label.centre.real, label.centre.imag), label.text, 0, self._font, anchor="mm")
        size = self.side // SCALE
        return picture.resize((size, size), Image.Resampling.LANCZOS).convert("RGB")

    def fit(
        self, *points: complex, turn: bool = False, caption: str = "", margin: int = MARGIN
    ) -> list[complex]:
        """The points in pixels, as large as canvas and `margin` allow. `caption` is written below them."""
        placed = list(points)
        if self.mirrored:
            placed = [-p.conjugate() for p in placed]
        if turn:
            placed = [p * cmath.exp(1j * self.turned) for p in placed]

        # The smallest box round the points, and the room that it may take: a caption needs 50 units below.
        low = complex(min(p.real for p in placed), min(p.imag for p in placed))
        high = complex(max(p.real for p in placed), max(p.imag for p in placed))
        span = high - low
        below = 50 if caption else 0
        room = complex(UNITS - 2 * margin, UNITS - 2 * margin - below)
        scale = min(room.real / max(span.real, 1e-9), room.imag / max(span.imag, 1e-9)) * self.unit

        # The conjugate turns the y axis over: upwards in the plane, downwards in an image.
        centre = complex(UNITS / 2, UNITS / 2 - below / 2) * self.unit
        fitted = [(p - (low + high) / 2).conjugate() * scale + centre for p in placed]
        if caption:
            bottom = int(max(p.imag for p in fitted) / self.unit)
            self._put(caption, (complex(UNITS / 2, y) * self.unit for y in range(bottom + 58, UNITS)))
        return fitted

    # Strokes

    def line(self, *points: complex, dashed: bool = False) -> None:
        """A line through the points, with round ends."""
        for p, q in itertools.pairwise(points):
            pieces = [(p, q)]
            if dashed:
                pieces = _dashes(p, q, 7 * self.unit)
            for a, b in pieces:
                self._pen.line([_xy(a), _xy(b)], 255, round(self.unit * 2))
                self._disc(a, 1)
                self._disc(b, 1)

    def polygon(self, *points: complex, shaded: bool = False) -> None:
        if shaded:
            self._fill(points)
        self.line(*points, points[0])

    def circle(self, centre: complex, through: complex, shaded: bool = False) -> None:
        radius = abs(through - centre)
        if shaded:
            # Pillow fills polygons; one with 180 corners is a circle to the eye.
            self._fill(centre + cmath.rect(radius, math.tau * i / 180) for i in range(180))
        self._pen.ellipse(_round(centre, radius), outline=255, width=round(self.unit * 2))

    def dot(self, p: complex) -> None:
        self._disc(p, 3)

    def ticks(self, p: complex, q: complex) -> None:
        """The mark of equal sides: a short bar across the middle."""
        bar = self._towards(p, q) * 1j * 6
        self.line((p + q) / 2 - bar, (p + q) / 2 + bar)

    def arrow(self, p: complex, q: complex, t: float = 0.5) -> None:
        """The mark of parallel lines: an arrow head on the line from p to q."""
        tip = p + t * (q - p)
        along = self._towards(p, q) * 8
        self.line(tip - along * (1 + 0.7j), tip, tip - along * (1 - 0.7j))

    def right(self, v: complex, p: complex, q: complex) -> None:
        """The mark of a right angle at v between the directions of p and q."""
        a = self._towards(v, p) * 14
        b = self._towards(v, q) * 14
        self.line(v + a, v + a + b, v + b)

    def arcs(self, v: complex, p: complex, q: complex, count: int = 1) -> None:
        """The mark of equal angles: arcs without a label, clockwise from p to q."""
        start, sweep = self._sweep(v, p, q)
        for i in range(count):
            self._arc(v, (17 + 5 * i) * self.unit, start, sweep)

    # Labels

    def angle(self, v: complex, p: complex, q: complex, text: str) -> None:
        """Mark the angle at v with an arc and its label, clockwise from p to q (mirrored: the other way).

        The narrower the angle, the farther out they lie; nothing comes between the two.
        """
        start, sweep = self._sweep(v, p, q)
        width, height = self._extent(text)
        # Where along the arc the label may stand, its middle first. A wide angle has room near its sides
        # too, and its arc stays near the corner.
        shares = [0.5, 0.45, 0.55, 0.4, 0.6]
        farthest = 160
        if sweep > math.pi / 2:
            shares += [0.3, 0.7, 0.2, 0.8]
            farthest = 16
        for beyond in range(0, 160, 2):
            radius = (20 + min(beyond, farthest)) * self.unit
            for share in shares:
                direction = cmath.rect(1, start + share * sweep)
                # From the label's middle to its edge, so that it is the edge that keeps its distance.
                reach = abs(direction.real) * width / 2 + abs(direction.imag) * height / 2
                centre = v + direction * ((25 + beyond) * self.unit + reach)
                if self._angle_is_clear(v, start, sweep, radius, text, centre):
                    self._arc(v, radius, start, sweep)
                    self._write(text, centre)
                    return
        raise ValueError(f"no room for the angle {text}")

    def _angle_is_clear(
        self, v: complex, start: float, sweep: float, radius: float, text: str, centre: complex
    ) -> bool:
        """Whether the label has room, no line is between it and the corner, and the arc meets no label."""
        if not self._is_free(text, centre):
            return False
        for i in range(8, 20):
            if self._is_inked(v + (centre - v) * i / 20):
                return False
        for i in range(21):
            on_arc = v + cmath.rect(radius, start + sweep * i / 20)
            if any(label.box.holds(on_arc) for label in self.labels):
                return False
        return True

    def length(self, p: complex, q: complex, text: str, inside: complex) -> None:
        """Label the line from p to q beside its middle, on the side away from `inside` if there is room."""
        outwards = self._towards(p, q) / self.unit * 1j
        if ((inside - p) * outwards.conjugate()).real > 0:
            outwards = -outwards
        width, height = self._extent(text)
        reach = (abs(outwards.real) * width + abs(outwards.imag) * height) / 2

        def places() -> Iterator[complex]:
            # First the outer side, from the middle of the line towards both ends, near the line before far.
            for side in (1, -1):
                for share in _from_the_middle(7):
                    beside = p + (0.5 + share / 20) * (q - p)
                    for beyond in (GAP + 2, GAP + 6, GAP + 12):
                        yield beside + side * outwards * (reach + beyond * self.unit)

        self._put(text, places())

    def name(self, p: complex, text: str, away: complex) -> None:
        """Name the point p, in the direction `away` from it or as near to that as there is room."""
        start = cmath.phase(away)

        def places() -> Iterator[complex]:
            # Near the point before far; round it in steps of 15 degrees, to both sides in turn.
            for beyond in range(15, 31, 3):
                for step in _from_the_middle(13):
                    yield p + cmath.rect(beyond * self.unit, start + step * math.pi / 12)

        self._put(text, places())

    def _put(self, text: str, places: Iterable[complex]) -> None:
        """Write the label at the first of these places that has room for it."""
        for place in places:
            if self._is_free(text, place):
                self._write(text, place)
                return
        raise ValueError(f"no room for the label {text}")

    def _write(self, text: str, centre: complex) -> None:
        self.labels.append(Label(text, centre, self._box(text, centre)))

    def _is_free(self, text: str, centre: complex) -> bool:
        """Whether a label here is inside the canvas and touches neither a label nor a line."""
        box = self._box(text, centre)
        edge = EDGE * self.unit
        if min(box.left, box.top) < edge or max(box.right, box.bottom) > self.side - edge:
            return False
        surroundings = box.grown(GAP * self.unit)
        if any(surroundings.overlaps(label.box) for label in self.labels):
            return False
        return self.strokes.crop(surroundings).getbbox() is None

    def _is_inked(self, p: complex) -> bool:
        return bool(self.strokes.getpixel((round(p.real), round(p.imag))))

    def _box(self, text: str, centre: complex) -> Box:
        left, top, right, bottom = self._font.getbbox(text, anchor="mm")
        x, y = centre.real, centre.imag
        return Box(left + x, top + y, right + x, bottom + y)

    def _extent(self, text: str) -> tuple[float, float]:
        left, top, right, bottom = self._font.getbbox(text, anchor="mm")
        return right - left, bottom - top

    def _towards(self, p: complex, q: complex) -> complex:
        """One unit of length from p to q."""
        return (q - p) / abs(q - p) * self.unit

    def _sweep(self, v: complex, p: complex, q: complex) -> tuple[float, float]:
        """Where the angle at v starts and how far it goes, clockwise in the image, in radians."""
        if self.mirrored:
            p, q = q, p
        start = cmath.phase(p - v)
        return start, (cmath.phase(q - v) - start) % math.tau

    def _arc(self, v: complex, r: float, start: float, sweep: float) -> None:
        end = start + sweep
        self._pen.arc(_round(v, r), math.degrees(start), math.degrees(end), 255, round(1.6 * self.unit))

    def _disc(self, p: complex, r: float) -> None:
        self._pen.ellipse(_round(p, r * self.unit), 255)

    def _fill(self, points: Iterable[complex]) -> None:
        ImageDraw.Draw(self._shade).polygon([_xy(p) for p in points], 226)


@functools.lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font (Aileron), so that a figure is the same on every machine."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType")
    return font


def _xy(p: complex) -> tuple[float, float]:
    return p.real, p.imag


def _round(centre: complex, r: float) -> Box:
    """The square round a circle."""
    return Box(centre.real - r, centre.imag - r, centre.real + r, centre.imag + r)


def _from_the_middle(count: int) -> list[int]:
    """0, 0, 1, -1, 2, -2 and so on: steps to both sides in turn."""
    return [sign * step for step in range(count) for sign in (1, -1)]


def _dashes(p: complex, q: complex, length: float) -> list[tuple[complex, complex]]:
    """The line from p to q as dashes of about this length; the first and the last touch its ends."""
    pieces = 2 * max(1, round(abs(q - p) / length / 2)) + 1
    step = q - p
    return [(p + step * i / pieces, p + step * (i + 1) / pieces) for i in range(0, pieces, 2)]
