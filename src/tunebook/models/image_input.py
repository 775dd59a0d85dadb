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
    """An image as RGB, upright, on white where it is transparent.

    Args:
        source: A file, or its content.
        max_size: Pixels of the longer side at most. Smaller images are never enlarged.

    Raises BadImage for a file that is missing, empty, cut short, no image, or too large to be decoded safely.
    """
    data = _read_bytes(source)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 0):
                raise BadImage("image too large", f"{image.width} x {image.height} pixels")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                # Converted directly, black lines on nothing become black on black.
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            rgb = upright.convert("RGB")
            if max_size:
                rgb.thumbnail((max_size, max_size), Image.Resampling.LANCZOS)
            return rgb
    except Image.DecompressionBombError as error:
        raise BadImage("image too large", first_line(error)) from None
    except UnidentifiedImageError:
        raise BadImage("not an image", f"starts with {data[:16]!r}") from None
    except BadImage:
        raise
    except Exception as error:  # a decoder may raise anything at bytes that are none of its own
        raise BadImage("image damaged", first_line(error)) from None


def _read_bytes(source: Path | bytes) -> bytes:
    try:
        if isinstance(source, bytes):
            data = source
        elif source.stat().st_size > MAX_BYTES:
            raise BadImage("image too large", f"{source.stat().st_size} bytes")
        else:
            data = source.read_bytes()
    except OSError as error:
        raise BadImage("image missing", first_line(error)) from None
    if not data:
        raise BadImage("image empty", "0 bytes")
    return data


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
        self.processor = processor
        self._counts: dict[tuple[int, int], tuple[int, int]] = {}
        """Of an image's size: tokens added, and those of them that stand for the image itself."""

    def added(self, paths: Iterable[str | Path]) -> int:
        """Tokens beyond the one placeholder that the chat template writes for each image."""
        return sum(self._count(path)[0] for path in paths)

    def soft(self, paths: Iterable[str | Path]) -> int:
        """Tokens that stand for the images themselves (`image_token_id`), without what frames them."""
        return sum(self._count(path)[1] for path in paths)

    def _count(self, path: str | Path) -> tuple[int, int]:
        size = image_size(path)
        if size not in self._counts:
            parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
            text = self.processor.apply_chat_template(parts, tokenize=False)
            image = Image.new("RGB", size, "white")
            with_image = self.processor(text=[text], images=[[image]], add_special_tokens=False)
            tokens = list(with_image["input_ids"][0])
            text_only = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
            added = len(tokens) - len(text_only)
            self._counts[size] = (added, tokens.count(self.processor.image_token_id))
        return self._counts[size]


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels, without decoding the image."""
    with Image.open(path) as image:
        return image.size
