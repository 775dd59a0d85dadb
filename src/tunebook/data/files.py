"""Which files a path in a recipe stands for, and how they are opened: compressed or not, in any encoding."""

from __future__ import annotations

import codecs
import glob
import io
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from tqdm.auto import tqdm

from tunebook.recipe.errors import UserError, say_once
from tunebook.recipe.files import find_file, find_path
from tunebook.recipe.sections import Section
from tunebook.runs.files import file_hash, fingerprint

# The kinds of files with rows, by the ends of their names.
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}  # by what PyArrow calls them
ADVICE = f"give a {', '.join(KINDS)} file (also {' or '.join(COMPRESSED)}), a folder or pattern of them"

# Tables of programs, which write CSV too.
TABLES = (".xlsx", ".xls", ".ods", ".numbers")

# What `datasets` leaves in a folder that `save_to_disk` has written: of one split, and of several.
SAVED = ("state.json", "dataset_dict.json")

# Bytes of a file that is not UTF-8, from which its encoding is guessed.
SAMPLE = 2**16


def kind_of(path: str | Path) -> str:
    """The kind of a file by its name, as in `.jsonl` of `rows.jsonl.gz`; empty when it is none of `KINDS`."""
    name = Path(path)
    if name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    kind = name.suffix.lower()
    return kind if kind in KINDS else ""


def is_file(path: str) -> bool:
    """Whether a path in a recipe names one file, by its kind."""
    return bool(kind_of(path)) and not is_pattern(path)


def is_pattern(path: str) -> bool:
    """Whether a path in a recipe may stand for several files, such as `rows-*.jsonl`."""
    return glob.has_magic(path)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` has written this folder with `save_to_disk`."""
    return any((folder / name).is_file() for name in SAVED)


def located(section: Section, path: str) -> str:
    """Where the file, folder or pattern lies that a section names; a hub id as it is.

    Raises UserError when there is no such file.
    """
    if is_file(path):
        return str(section.find_file(path))
    try:
        found = find_path(path, section.places, lambda place: place.exists() or bool(_glob(place)))
    except OSError:  # a name that is too long, a folder that may not be read
        found = None
    return str(found) if found else path


def tables(path: str, key: str) -> dict[str, Path]:
    """The files that a path stands for, in sorted order, by the names that reports use.

    Args:
        path: A file, a pattern, a folder of files, a folder of `save_to_disk`, or a hub id.
        key: Of the recipe, for messages.

    Returns:
        Nothing for what can only be a hub id; a folder of `save_to_disk` stands for itself.

    Raises UserError when there is no such file.
    """
    place = Path(path)
    # A real file may have a bracket in its name, so a pattern comes second.
    if is_file(path) or place.is_file():
        if place.suffix.lower() in TABLES:
            raise UserError(f"{key}: cannot read {path}: save it as `CSV UTF-8` in Excel or LibreOffice")
        if not kind_of(path):
            raise UserError(f"{key}: cannot read {path}; {ADVICE}, or a hub id")
        file = find_file(path)
        return {file.name: file}
    if is_pattern(path):
        return _matches(place, key)
    if place.is_dir():
        return _files_in(place.resolve(), path, key)
    # A hub id may end in a number: `data-v1.5`.
    if place.suffix[1:].isalpha():
        raise UserError(f"{key}: cannot read {path}; {ADVICE}, or a hub id")
    if path.startswith((".", "/", "~")) or path.endswith("/"):
        raise UserError(f"{key}: no folder {path}; {ADVICE}")
    return {}


def _matches(pattern: Path, key: str) -> dict[str, Path]:
    """The files of a pattern, by their names from the folder in which it begins to vary."""
    matches = _glob(pattern)
    if not matches:
        raise UserError(f"{key}: no file matches {pattern}")
    base = pattern_base(pattern)
    found = {}
    for file in matches:
        if kind_of(file) and file.is_file():
            found[file.relative_to(base).as_posix()] = file.resolve()
    if not found:
        raise UserError(f"{key}: no file that matches {pattern} can be read; {ADVICE}")
    return found


def _glob(pattern: Path) -> list[Path]:
    base = pattern_base(pattern)
    if base == pattern:
        return []
    try:
        return sorted(base.glob(str(pattern.relative_to(base))))
    except ValueError:  # such as `**rows`
        return []


def pattern_base(pattern: Path) -> Path:
    """The folder of a pattern in which names begin to vary: `a/b` of `a/b/*/rows-?.jsonl`."""
    base = pattern
    while glob.has_magic(str(base)):
        base = base.parent
    return base


def _files_in(folder: Path, path: str, key: str) -> dict[str, Path]:
    if is_saved_dataset(folder):
        return {folder.name: folder}
    found = {}
    for file in sorted(folder.iterdir()):
        if kind_of(file) and file.is_file() and not file.name.startswith("."):
            found[file.name] = file
    if not found:
        raise UserError(
            f"{key}: the folder {path} holds no {', '.join(KINDS)} file; "
            f"for those in folders below it give a pattern such as {path.rstrip('/')}/**/*.jsonl"
        )
    return found


def say_which(path: str, names: list[str]) -> None:
    """Print which files a path stands for: a test file among them would be trained on."""
    listing = ", ".join(names)
    if len(names) > 4:
        listing = f"{len(names)} files, {names[0]} to {names[-1]}"
    tqdm.write(f"{path}: rows of {listing}")


def image_folder(path: str) -> Path:
    """Where the images that rows name lie, unless the recipe says it: beside the file or in the folder."""
    place = Path(path)
    if place.is_dir():
        return place
    return pattern_base(place) if is_pattern(path) and not place.is_file() else place.parent


def content_hash(path: str, key: str) -> str:
    """A short hash of all files that a path stands for; empty for a hub id."""
    found = tables(path, key)
    files = {}
    for name, place in found.items():
        if place.is_dir():
            for file in sorted(place.rglob("*")):
                if file.is_file():
                    files[f"{name}/{file.relative_to(place).as_posix()}"] = file
        else:
            files[name] = place
    if len(files) == 1 and is_file(path):
        return file_hash(*files.values())
    hashes = {name: file_hash(file) for name, file in files.items()}
    return fingerprint(hashes) if hashes else ""


def open_bytes(path: Path) -> BinaryIO:
    """A file's bytes, decompressed where its name says that it is compressed."""
    compression = COMPRESSED.get(path.suffix.lower())
    if compression is None:
        return path.open("rb")
    import pyarrow

    # PyArrow, which `datasets` brings, reads both kinds; Python has zstd only from 3.14 on.
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=compression))


def open_text(path: Path) -> TextIO:
    """A text file in the encoding that it is in, line ends as they are.

    Says in one line which encoding that is, when it is not UTF-8.
    """
    encoding = encoding_of(path)
    if encoding != "utf-8-sig":
        say_once(f"{path.name}: not UTF-8, read as {encoding}; if letters look wrong, save it again as UTF-8")
    return io.TextIOWrapper(cast(io.BufferedReader, open_bytes(path)), encoding=encoding, newline="")


def encoding_of(path: Path) -> str:
    """The encoding of a text file: what its first bytes say, or UTF-8, or the likeliest one.

    Raises UnicodeDecodeError for a file that is UTF-8 but for a few bytes.
    """
    with open_bytes(path) as file:
        head = file.read(SAMPLE)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        if b"\0" in head:
            # Text of 16 bits a letter; ASCII letters would pass for UTF-8.
            return _guess(head)
        decoder = codecs.getincrementaldecoder("utf-8")()
        chunk = head
        while True:
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                # From the line of the first odd byte on: there may be megabytes of ASCII before it.
                start = chunk.rfind(b"\n", 0, error.start) + 1
                sample = chunk[start:] + file.read(SAMPLE)
                if _is_nearly_utf8(sample):
                    raise
                return _guess(sample)
            if not chunk:
                return "utf-8-sig"
            chunk = file.read(SAMPLE)


def _is_nearly_utf8(sample: bytes) -> bool:
    text = sample.decode("utf-8", "replace")
    letters = sum(not character.isascii() for character in text)
    return letters > 2 * text.count("\ufffd")


def _guess(sample: bytes) -> str:
    """The likeliest encoding of text that is not UTF-8."""
    # In Western Europe's text few letters are outside ASCII. Of so few, in a short file, the library takes
    # French for Baltic and German for Polish; where most letters are such it is right more often.
    foreign = sum(byte >= 0x80 for byte in sample)
    letters = foreign + sum(chr(byte).isalpha() for byte in sample if byte < 0x80)
    if b"\0" not in sample and foreign < 0.4 * letters:
        return "cp1252" if _decodes(sample, "cp1252") else "latin-1"
    import charset_normalizer

    best = charset_normalizer.from_bytes(sample).best()
    return best.encoding if best else "latin-1"


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        sample.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
