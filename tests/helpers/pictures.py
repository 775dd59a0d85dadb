"""Small pictures, each of another look."""

from __future__ import annotations

import io

from PIL import Image


def drawing(i: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    image.paste((i % 256, 40, 90), (10, 10, 30 + i % 50, 40))
    return image


def png(image: Image.Image, kind: str = "PNG", **how) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()
