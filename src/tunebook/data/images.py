"""Images of rows: checked, made RGB, scaled, and kept once by content.

Also what a model is shown in their place, to see whether it looks at them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
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
from tunebook.runs.files import written_whole

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `read` refuses such an image

# Rows whose images are under way at a time: memory stays flat however many rows there are.
CHUNK = 256

# Where raw rows name their images; the first that is not empty counts.
COLUMNS = ("images", "image", "file_name")

# What is shown of a row's image: itself, a white one of the same size, or that of another row.
ImageSwap = Literal["true", "blank", "swapped"]


def finder(place: Path) -> Callable[[str], Path | bytes]:
    """Finds images by name in a folder and the folders in it, or in a zip file.

    What it returns raises BadImage for a name that is not there or leads out of the folder.
    """
    if place.is_file():
        return _zip_finder(place)
    # Resolved, because a link or `..` in a name of the data must not lead out of the folder.
    root = place.resolve()
    folders = [root]
    if root.is_dir():
        folders += sorted(entry for entry in root.iterdir() if entry.is_dir())

    def find(name: str) -> Path:
        try:
            for folder in folders:
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


def _zip_finder(archive: Path) -> Callable[[str], bytes]:
    try:
        files = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{archive} cannot be read: {first_line(error)}") from None
    # By the whole name, and without the folder that all files of an archive may lie in.
    members = {member: member for member in files.namelist()}
    for member in files.namelist():
        members[member.partition("/")[2]] = member

    def find(name: str) -> bytes:
        if name not in members:
            raise BadImage("image missing", f"no {name!r} in {archive}")
        size = files.getinfo(members[name]).file_size
        if size > MAX_BYTES:
            raise BadImage("image too large", f"{size} bytes")
        try:
            return files.read(members[name])
        except Exception as error:  # also zlib's, and of a password or a method that there is not
            raise BadImage("image damaged", first_line(error)) from None

    return find


def listing(place: Path) -> str:
    """A short hash of what a file or folder holds: names and sizes, and the content of its tables."""
    files = [place]
    if place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.is_file())
    # Tables decide which rows there are; of images the size must do, there may be gigabytes of them.
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(place)} {path.stat().st_size}\n".encode())
        if path.suffix in (".jsonl", ".parquet"):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def of_row(raw: dict[str, Any], find: Callable[[str], Path | bytes]) -> list[Path | bytes]:
    """The image files (or bytes) that a raw row names. Raises BadImage for one that is not there."""
    named: Any = []
    for column in COLUMNS:
        if raw.get(column):
            named = raw[column]
            break
    if not isinstance(named, list):
        named = [named]
    images: list[Path | bytes] = []
    for image in named:
        name = image
        if isinstance(image, dict):  # `datasets` keeps an image as {bytes, path}
            if isinstance(image.get("bytes"), bytes):
                images.append(image["bytes"])
                continue
            name = image.get("path")
        if not isinstance(name, str):
            raise BadImage("schema", f"image: {type(image).__name__} is no file name")
        images.append(find(name))
    return images


def store(image: Image.Image, folder: Path) -> str:
    """Write an RGB image, and a white one of its size beside it.

    Returns the file's name, `<hash of its pixels>.png`.
    """
    name = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:20] + ".png"
    _save(image, folder / name)
    _save(Image.new("RGB", image.size, "white"), folder / _blank_name(image.width, image.height))
    return name


def store_all(rows: Iterable[Row | Reject], folder: Path, max_size: int) -> Iterator[Row | Reject]:
    """The rows with their images in `folder` and the names in `Row.images`; a bad image makes it a `Reject`.

    Several at a time: decoding, scaling and writing run outside Python's lock.
    """

    def store_row(row: Row | Reject) -> Row | Reject:
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
            # Rows of text need no folder and no threads.
            if any(isinstance(row, Row) and row.images for row in chunk):
                folder.mkdir(parents=True, exist_ok=True)
                yield from pool.map(store_row, chunk)
            else:
                yield from chunk


def assign_splits(rows: Iterable[Row | Reject], val: float, test: float) -> Iterator[Row | Reject]:
    """Rows without a split get one: those that share an image or a question the same. They come last."""
    waiting: list[Row] = []
    for row in rows:
        if isinstance(row, Reject) or row.split:
            yield row
        else:
            waiting.append(row)
    if not waiting:
        return
    from scipy.cluster.hierarchy import DisjointSet

    groups = DisjointSet()
    for row in waiting:
        first_key, *further_keys = _keys(row)
        groups.add(first_key)
        for key in further_keys:
            groups.add(key)
            groups.merge(first_key, key)
    # A group's smallest key stands for it, so that the order of rows does not matter.
    smallest_key = {}
    for group in groups.subsets():
        smallest_key.update(dict.fromkeys(group, min(group)))
    for row in waiting:
        row.split = split_of(smallest_key[_keys(row)[0]], val, test)
        yield row


def _keys(row: Row) -> list[str]:
    """What rows of one group share: images, and a question with a number.

    Without one, `What is the angle at C?` is another question with each image.
    """
    keys = list(row.images)
    if any(character.isdigit() for character in row.question):
        keys.append(row.question)
    return keys


def swap_images(kind: ImageSwap, rows: list[list[str]]) -> list[list[str]]:
    """The image files of rows, each in place of itself, a blank one of its size, or that of another row.

    `swapped` takes the images of the next row that has others; where none has, a row keeps its own.
    """
    if kind == "true":
        return rows
    if kind == "blank":
        return [[_blank(path) for path in images] for images in rows]
    swapped = []
    for i, images in enumerate(rows):
        following = rows[i + 1 :] + rows[:i]
        swapped.append(next((others for others in following if others != images), images))
    return swapped


def _blank(path: str) -> str:
    return str(Path(path).with_name(_blank_name(*image_size(path))))


def _blank_name(width: int, height: int) -> str:
    return f"blank-{width}x{height}.png"


def _save(image: Image.Image, path: Path) -> None:
    # Named by its content: what is there is the same, and another thread may be writing it.
    if not path.exists():
        with written_whole(path) as temporary:
            image.save(temporary, "PNG")
