"""A canvas for labelled geometry figures: strokes first, then labels where there is room for them.

Points are complex numbers. `fit` takes them from the plane of the problem (y upwards) to pixels (y downwards); every
other method works in pixels. A label is tried at one place after another until its box is free of strokes and of
other labels, so that nothing in a figure is illegible whatever the values are.
"""

from __future__ import annotations

import cmath
import functools
import itertools
import math
import random
from collections.abc import Iterable
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SCALE = 3  # drawn so much larger and reduced, for smooth lines
UNITS = 448  # a canvas is so many units wide, whatever its pixels; lengths below are in units
MARGIN = 42  # round the points of the figure, for the names outside it
EDGE = 7  # what stays white round everything
GAP = 4  # round a label
Box = tuple[float, float, float, float]


class Label(NamedTuple):
    """A text and the pixels that it covers (left, top, right, bottom) on the enlarged canvas."""

    text: str
    centre: complex
    box: Box


class Canvas:
    """A square of `size` pixels. `seed` decides whether the figure is mirrored and how far it is turned.

    Every method that places a label raises ValueError when it finds no room for it.
    """

    def __init__(self, size: int, seed: str) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a seeded drawing, not a secret
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
        """The points in pixels, as large as the canvas and `margin` allow. `caption` is written below them."""
        if self.mirrored:
            points = tuple(-p.conjugate() for p in points)
        if turn:
            points = tuple(p * cmath.exp(1j * self.turned) for p in points)
        low = complex(min(p.real for p in points), min(p.imag for p in points))
        high = complex(max(p.real for p in points), max(p.imag for p in points))
        room = complex(UNITS - 2 * margin, UNITS - 2 * margin - (50 if caption else 0))
        span = high - low
        scale = min(room.real / max(span.real, 1e-9), room.imag / max(span.imag, 1e-9)) * self.unit
        centre = complex(UNITS / 2, UNITS / 2 - (25 if caption else 0)) * self.unit
        fitted = [(p - (low + high) / 2).conjugate() * scale + centre for p in points]
        if caption:
            bottom = max(p.imag for p in fitted) / self.unit
            self._put(caption, (complex(UNITS / 2, y) * self.unit for y in range(int(bottom) + 58, UNITS)))
        return fitted

    # Strokes

    def line(self, *points: complex, dashed: bool = False) -> None:
        """A line through the points, with round ends."""
        for p, q in itertools.pairwise(points):
            for a, b in _dashes(p, q, 7 * self.unit) if dashed else [(p, q)]:
                self._pen.line([_xy(a), _xy(b)], 255, round(self.unit * 2))
                self._disc(a, 1)
                self._disc(b, 1)

    def polygon(self, *points: complex, shaded: bool = False) -> None:
        if shaded:
            self._fill(points)
        self.line(*points, points[0])

    def circle(self, centre: complex, through: complex, shaded: bool = False) -> None:
        r = abs(through - centre)
        if shaded:
            self._fill([centre + cmath.rect(r, math.tau * i / 180) for i in range(180)])
        self._pen.ellipse(_round(centre, r), outline=255, width=round(self.unit * 2))

    def dot(self, p: complex) -> None:
        self._disc(p, 3)

    def ticks(self, p: complex, q: complex) -> None:
        """The mark of equal sides: a short bar across the middle."""
        bar = self._towards(p, q) * 1j * 6
        self.line((p + q) / 2 - bar, (p + q) / 2 + bar)

    def arrow(self, p: complex, q: complex, t: float = 0.5) -> None:
        """The mark of parallel lines: an arrow head on the line from p to q."""
        tip, along = p + t * (q - p), self._towards(p, q) * 8
        self.line(tip - along * (1 + 0.7j), tip, tip - along * (1 - 0.7j))

    def right(self, v: complex, p: complex, q: complex) -> None:
        """The mark of a right angle at v between the directions of p and q."""
        a, b = self._towards(v, p) * 14, self._towards(v, q) * 14
        self.line(v + a, v + a + b, v + b)

    def arcs(self, v: complex, p: complex, q: complex, count: int = 1) -> None:
        """The mark of equal angles: arcs without a label, clockwise from p to q."""
        start, sweep = self._sweep(v, p, q)
        for i in range(count):
            self._arc(v, (17 + 5 * i) * self.unit, start, sweep)

    # Labels

    def angle(self, v: complex, p: complex, q: complex, text: str) -> None:
        """Mark the angle at v, clockwise from p to q (the other way round in a mirrored figure), with an arc and its label.

        The narrower the angle, the farther out they lie; nothing comes between the two.
        """
        start, sweep = self._sweep(v, p, q)
        width, height = self._extent(text)
        wide = sweep > math.pi / 2
        for beyond in range(0, 160, 2):
            for share in (0.5, 0.45, 0.55, 0.4, 0.6, *((0.3, 0.7, 0.2, 0.8) if wide else ())):
                towards = cmath.rect(1, start + share * sweep)
                reach = abs(towards.real) * width / 2 + abs(towards.imag) * height / 2
                r = (20 + min(beyond, 16 if wide else 160)) * self.unit
                at = v + towards * ((25 + beyond) * self.unit + reach)
                if not self._free(text, at) or any(self._inked(v + (at - v) * i / 20) for i in range(8, 20)):
                    continue  # no room, or a line between the angle and its label
                on_arc = (v + cmath.rect(r, start + sweep * i / 20) for i in range(21))
                if not any(_inside(x, label.box) for x in on_arc for label in self.labels):
                    self._arc(v, r, start, sweep)
                    self.labels.append(Label(text, at, self._box(text, at)))
                    return
        raise ValueError(f"no room for the angle {text}")

    def length(self, p: complex, q: complex, text: str, inside: complex) -> None:
        """Label the line from p to q beside its middle, on the side away from `inside` if there is room."""
        normal = self._towards(p, q) / self.unit * 1j
        if ((inside - p) * normal.conjugate()).real > 0:
            normal = -normal
        width, height = self._extent(text)
        reach = (abs(normal.real) * width + abs(normal.imag) * height) / 2
        shares = [0.5 + sign * step / 20 for step in range(7) for sign in (1, -1)]
        self._put(
            text,
            (
                p + share * (q - p) + side * normal * (reach + beyond * self.unit)
                for side in (1, -1)
                for share in shares
                for beyond in (GAP + 2, GAP + 6, GAP + 12)
            ),
        )

    def name(self, p: complex, text: str, away: complex) -> None:
        """Name the point p, in the direction `away` from it or as near to that as there is room."""
        start = cmath.phase(away)
        turns = [sign * step * math.pi / 12 for step in range(13) for sign in (1, -1)]
        self._put(
            text,
            (
                p + cmath.rect(beyond * self.unit, start + turn)
                for beyond in range(15, 31, 3)
                for turn in turns
            ),
        )

    def _put(self, text: str, places: Iterable[complex]) -> None:
        for at in places:
            if self._free(text, at):
                self.labels.append(Label(text, at, self._box(text, at)))
                return
        raise ValueError(f"no room for the label {text}")

    def _free(self, text: str, at: complex) -> bool:
        gap, edge = GAP * self.unit, EDGE * self.unit
        left, top, right, bottom = self._box(text, at)
        box = (left - gap, top - gap, right + gap, bottom + gap)
        if min(left, top) < edge or max(right, bottom) > self.side - edge:
            return False
        apart = (
            box[0] > o[2] or box[2] < o[0] or box[1] > o[3] or box[3] < o[1]
            for o in (label.box for label in self.labels)
        )
        return all(apart) and self.strokes.crop(box).getbbox() is None

    def _inked(self, p: complex) -> bool:
        return bool(self.strokes.getpixel((round(p.real), round(p.imag))))

    def _box(self, text: str, at: complex) -> Box:
        left, top, right, bottom = self._font.getbbox(text, anchor="mm")
        return left + at.real, top + at.imag, right + at.real, bottom + at.imag

    def _extent(self, text: str) -> tuple[float, float]:
        left, top, right, bottom = self._font.getbbox(text, anchor="mm")
        return right - left, bottom - top

    def _towards(self, p: complex, q: complex) -> complex:
        """One unit of length from p to q."""
        return (q - p) / abs(q - p) * self.unit

    def _sweep(self, v: complex, p: complex, q: complex) -> tuple[float, float]:
        if self.mirrored:
            p, q = q, p
        start = cmath.phase(p - v)
        return start, (cmath.phase(q - v) - start) % math.tau

    def _arc(self, v: complex, r: float, start: float, sweep: float) -> None:
        self._pen.arc(
            _round(v, r), math.degrees(start), math.degrees(start + sweep), 255, round(1.6 * self.unit)
        )

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
    return centre.real - r, centre.imag - r, centre.real + r, centre.imag + r


def _inside(p: complex, box: Box) -> bool:
    return box[0] <= p.real <= box[2] and box[1] <= p.imag <= box[3]


def _dashes(p: complex, q: complex, length: float) -> list[tuple[complex, complex]]:
    n = 2 * max(1, round(abs(q - p) / length / 2)) + 1
    return [(p + (q - p) * i / n, p + (q - p) * (i + 1) / n) for i in range(0, n, 2)]
