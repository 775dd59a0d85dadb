"""Images as models take them: read safely, made RGB, encoded for servers, and counted in tokens."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from tunebook.recipe.errors import UserError, first_line

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
"""What is read as an image. Not all that Pillow can: for EPS it would start Ghostscript."""


MAX_BYTES = 200 * 2**20
"""Of an image file."""


class BadImage(ValueError):
    """Why an image cannot be used: `reason` is one of a few words, the text says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


def read(source: Path | bytes, max_size: int | None = None) -> Image.Image:
    """An image as RGB, upright, on white where it is transparent, its longer side at most `max_size` pixels (never enlarged).

    Raises BadImage for a file that is missing, empty, cut short, no image, or too large to be decoded safely.
    """
    try:
        if not isinstance(source, bytes) and source.stat().st_size > MAX_BYTES:
            raise BadImage("image too large", f"{source.stat().st_size} bytes")
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise BadImage("image missing", first_line(error)) from None
    if not data:
        raise BadImage("image empty", "0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
                raise BadImage("image too large", f"{image.width} x {image.height} pixels")
            found = ImageOps.exif_transpose(image)
            if (
                found.has_transparency_data
            ):  # converted directly, black lines on nothing become black on black
                found = Image.alpha_composite(Image.new("RGBA", found.size, "white"), found.convert("RGBA"))
            found = found.convert("RGB")
            if max_size:
                found.thumbnail((max_size, max_size), Image.Resampling.LANCZOS)
            return found
    except Image.DecompressionBombError as error:
        raise BadImage("image too large", first_line(error)) from None
    except UnidentifiedImageError:
        raise BadImage("not an image", f"starts with {data[:16]!r}") from None
    except BadImage:
        raise
    except Exception as error:  # a decoder may raise anything at bytes that are none of its own
        raise BadImage("image damaged", first_line(error)) from None


def open_all(paths: Iterable[str]) -> list[Image.Image]:
    """Stored images as PIL. Raises UserError when one is gone."""
    try:
        return [read(Path(path)) for path in paths]
    except BadImage as error:
        raise UserError(
            f"an image of the data cannot be read ({error}): run `uv run tunebook prepare --force`"
        ) from None


def data_url(source: Path | bytes) -> str:
    """An image as OpenAI-compatible servers take it."""
    out = io.BytesIO()
    read(source).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


class TokenCounter:
    """Tokens that images add to a rendered prompt, by asking the processor once for each size of image."""

    def __init__(self, processor: Any) -> None:
        self.processor, self._known = processor, dict[tuple[int, int], tuple[int, int]]()

    def added(self, paths: Iterable[str | Path]) -> int:
        """Tokens beyond the one placeholder that the chat template writes for each image."""
        return sum(self._ask(size)[0] for size in map(image_size, paths))

    def soft(self, paths: Iterable[str | Path]) -> int:
        """Tokens that stand for the images themselves (`image_token_id`), without what frames them."""
        return sum(self._ask(size)[1] for size in map(image_size, paths))

    def _ask(self, size: tuple[int, int]) -> tuple[int, int]:
        if size not in self._known:
            parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
            text = self.processor.apply_chat_template(parts, tokenize=False)
            whole = self.processor(
                text=[text], images=[[Image.new("RGB", size, "white")]], add_special_tokens=False
            )["input_ids"][0]
            added = len(whole) - len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
            self._known[size] = added, list(whole).count(self.processor.image_token_id)
        return self._known[size]


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels, without decoding the image."""
    with Image.open(path) as image:
        return image.size
