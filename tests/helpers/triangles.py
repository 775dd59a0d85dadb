"""Pictures of triangles whose angles stand in the picture alone."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFont

ANGLES = ((65, 65), (75, 70), (60, 60), (50, 45), (40, 60), (45, 45))
QUESTION = "As shown in the figure, find $\\angle C$."


def triangle(a: int, b: int, corner: int, size: int = 96) -> Image.Image:
    """Angles at A and B are written, the one at C is asked for.

    `corner` is the grey of one pixel: another picture that looks the same.
    """
    image = Image.new("RGB", (size, size), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=size // 10)
    ra, rb = math.radians(a), math.radians(b)
    h = math.tan(ra) * math.tan(rb) / (math.tan(ra) + math.tan(rb))
    k = 0.7 * size / max(1, h)
    left, right = (0.12 * size, 0.85 * size), (0.12 * size + k, 0.85 * size)
    top = (left[0] + k * h / math.tan(ra), left[1] - k * h)
    pen.line([left, right, top, left], fill="black", width=2)
    for at, text, anchor in ((left, f"A {a}°", "mt"), (right, f"B {b}°", "mt"), (top, "C ?", "mb")):
        pen.text(at, text, fill="black", font=font, anchor=anchor)
    image.putpixel((0, 0), (corner, corner, corner))
    return image
