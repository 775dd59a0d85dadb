"""Images of rows: checked, made RGB, scaled, and kept once by content. Also what a model gets in their place to see whether it looks."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from tunebook.data.rows import Reject, Row, split_of
from tunebook.models.image_input import MAX_BYTES, BadImage, image_size, read
from tunebook.recipe.errors import UserError, first_line

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `read` refuses such an image


CHUNK = 256
"""Rows whose images are under way at a time: memory stays flat however many rows there are."""


Instead = Literal["true", "blank", "swapped"]
"""What is shown of a row's image: itself, a white one of the same size, or that of another row."""


def finder(place: Path) -> Callable[[str], Path | bytes]:
    """Finds images by name in a folder and the folders in it, or in a zip file. What it returns raises BadImage for a name
    that is not there or leads out of the folder."""
    if place.is_file():
        return _in_zip(place)
    root = place.resolve()
    places = [root, *sorted(p for p in root.iterdir() if p.is_dir())] if root.is_dir() else [root]

    def find(name: str) -> Path:
        try:
            for folder in places:
                path = (folder / name).resolve()
                if not path.is_relative_to(root):
                    raise BadImage("image outside the folder", repr(name))
                if path.is_file():
                    return path
        except (OSError, RuntimeError) as error:  # too long a name, a link to itself
            raise BadImage("image missing", first_line(error)) from None
        except BadImage:
            raise
        except ValueError:
            raise BadImage("image missing", f"{name!r} is no file name") from None
        raise BadImage("image missing", f"no {name!r} in {place}")

    return find


def listing(place: Path) -> str:
    """A short hash of what a file or folder holds: names and sizes, and the content of its tables."""
    digest = hashlib.sha256()
    for path in sorted(p for p in (place.rglob("*") if place.is_dir() else [place]) if p.is_file()):
        digest.update(f"{path.relative_to(place)} {path.stat().st_size}\n".encode())
        if path.suffix in (".jsonl", ".parquet"):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _in_zip(archive: Path) -> Callable[[str], bytes]:
    try:
        files = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{archive} cannot be read: {first_line(error)}") from None
    members = {m: m for m in files.namelist()} | {m.partition("/")[2]: m for m in files.namelist()}

    def find(name: str) -> bytes:
        if name not in members:
            raise BadImage("image missing", f"no {name!r} in {archive}")
        if (size := files.getinfo(members[name]).file_size) > MAX_BYTES:
            raise BadImage("image too large", f"{size} bytes")
        try:
            return files.read(members[name])
        except Exception as error:  # also zlib's, and of a password or a method that there is not
            raise BadImage("image damaged", first_line(error)) from None

    return find


def of_row(raw: dict[str, Any], find: Callable[[str], Path | bytes]) -> list[Path | bytes]:
    """The image files (or bytes) that a row names as `images`, `image` or `file_name`. Raises BadImage for one that is not there."""
    given: Any = next((raw[k] for k in ("images", "image", "file_name") if raw.get(k)), [])
    out: list[Path | bytes] = []
    for one in given if isinstance(given, list) else [given]:
        name = one.get("path") if isinstance(one, dict) else one  # `datasets` keeps an image as {bytes, path}
        if isinstance(one, dict) and isinstance(one.get("bytes"), bytes):
            out.append(one["bytes"])
        elif isinstance(name, str):
            out.append(find(name))
        else:
            raise BadImage("schema", f"image: {type(one).__name__} is no file name")
    return out


def store(image: Image.Image, folder: Path) -> str:
    """Write an RGB image to `<hash of its pixels>.png`, and a white one of its size beside it; returns the name."""
    digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:20]
    _save(image, folder / f"{digest}.png")
    _save(Image.new("RGB", image.size, "white"), folder / f"blank-{image.width}x{image.height}.png")
    return f"{digest}.png"


def stored(rows: Iterable[Row | Reject], folder: Path, max_size: int) -> Iterator[Row | Reject]:
    """The rows with their images in `folder` and the names in `Row.images`; one with a bad image becomes a `Reject`.

    Several at a time: decoding, scaling and writing run outside Python's lock.
    """

    def keep(row: Row | Reject) -> Row | Reject:
        if isinstance(row, Reject) or not row.images:
            return row
        try:
            row.images = [store(read(image, max_size), folder) for image in row.images]
        except BadImage as error:
            return Reject(row.source_id, error.reason, str(error), {"question": row.question})
        return row

    rows = iter(rows)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        while chunk := list(itertools.islice(rows, CHUNK)):
            if any(isinstance(row, Row) and row.images for row in chunk):
                folder.mkdir(parents=True, exist_ok=True)
                yield from pool.map(keep, chunk)
            else:
                yield from chunk


def together(rows: Iterable[Row | Reject], val: float, test: float) -> Iterator[Row | Reject]:
    """Rows that have no split yet get one, those that share an image or a question the same; they come last.

    A question without a number (`What is the angle at C?`) is another one with each image.
    """
    waiting: list[Row] = []
    for row in rows:
        if isinstance(row, Reject) or row.split:
            yield row
        else:
            waiting.append(row)
    if not waiting:
        return
    from scipy.cluster.hierarchy import DisjointSet

    groups = DisjointSet(key for row in waiting for key in _keys(row))
    for row in waiting:
        first_key, *others = _keys(row)
        for key in others:
            groups.merge(first_key, key)
    first = {root: min(groups.subset(root)) for root in {groups[_keys(row)[0]] for row in waiting}}
    for row in waiting:
        row.split = split_of(first[groups[_keys(row)[0]]], val, test)
        yield row


def _keys(row: Row) -> list[str]:
    return [*row.images, *([row.question] if any(c.isdigit() for c in row.question) else [])]


def instead(kind: Instead, rows: list[list[str]]) -> list[list[str]]:
    """The image files of rows with each in place of itself (`true`), a blank one of its size, or those of the next row whose are others."""
    if kind == "true":
        return rows
    if kind == "blank":
        return [[_blank(path) for path in row] for row in rows]
    return [
        next(
            (rows[(i + k) % len(rows)] for k in range(1, len(rows)) if rows[(i + k) % len(rows)] != row), row
        )
        for i, row in enumerate(rows)
    ]


def _blank(path: str) -> str:
    width, height = image_size(path)
    return str(Path(path).with_name(f"blank-{width}x{height}.png"))


def _save(image: Image.Image, path: Path) -> None:
    """So that a reader, or another thread, never sees half of it."""
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{threading.get_ident()}.tmp")
        image.save(temporary, "PNG")
        temporary.replace(path)
