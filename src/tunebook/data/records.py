"""Raw records out of files and hub data sets, numbered, some of them drawn; whatever their columns mean."""

from __future__ import annotations

import csv
import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tunebook.data.rows import Reject, hash_fraction
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.files import find_file
from tunebook.recipe.sections import Rows, Section

Raw = dict[str, Any]

# Raw rows (or what cannot be read as one), numbered from 1; of .jsonl by the line, as an editor counts.
Numbered = Iterator[tuple[int, Raw | Reject]]


def records(path: str, hub_split: str, key: str, hub_config: str | None = None) -> Numbered:
    """Numbered raw records of a file of a kind in `FILES` or of a hub data set.

    Raises UserError that names the recipe's `key` when it cannot be read.
    """
    kind = Path(path).suffix.lower()
    if kind[1:].isalpha() and not is_file(path):  # a hub id may end in a number: `data-v1.5`
        raise UserError(f"{key}: cannot read {path}; give a {', '.join(FILES)} file or a hub id")
    try:
        if is_file(path):
            yield from FILES[kind](find_file(path))
        else:
            yield from _hub(path, hub_config, hub_split)
    except (OSError, ValueError, RecursionError, csv.Error) as error:  # not found, no network, a damaged file
        raise UserError(f"{key}: cannot read {path} ({first_line(error)})") from None


def located(section: Section, path: str) -> str:
    """Where the file or folder lies that a section names; a hub id as it is.

    Raises UserError when there is no such file.
    """
    return str(section.find_file(path) if is_file(path) else section.find_path(path))


def is_file(path: str) -> bool:
    """Whether a source is a file, by its kind; else it is a hub id."""
    return Path(path).suffix.lower() in FILES


def source_name(path: str, hub_split: str) -> str:
    """What a source's rows are called in reports: by the file, or by hub id and split."""
    name = Path(path).name
    return name if is_file(path) else f"{name}/{hub_split}"


def renamed(raw: Raw, columns: dict[str, str]) -> Raw:
    """A raw row with our names beside its own; `columns` is {our name: its name}."""
    row = dict(raw)
    for our_name, its_name in columns.items():
        row[our_name] = raw.get(its_name)
    return row


def drawn(numbered: Iterable[tuple[int, Raw | Reject]], rows: Rows, seed: int) -> Numbered:
    """So many of the numbered records, or a share of them, in their order.

    A record is drawn by a hash of its content and the seed: it stays drawn when others are added or moved, as
    far as the number allows.
    """

    def luck(item: tuple[int, Raw | Reject]) -> float:
        _, record = item
        content = record.row if isinstance(record, Reject) else record
        return hash_fraction(f"{seed}/{json.dumps(content, sort_keys=True, default=str)}")

    if isinstance(rows, float):
        for item in numbered:
            if luck(item) < rows:
                yield item
    elif rows:
        # Of all records only so many are in memory at a time.
        luckiest = heapq.nsmallest(rows, numbered, key=luck)
        yield from sorted(luckiest, key=lambda item: item[0])
    else:
        yield from numbered


def read_jsonl(path: Path) -> Numbered:
    """A row a line; a line that is none is a reject."""
    # Bytes, because each line is decoded by itself: one that is not UTF-8 spoils no other.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            source_id = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                raw = json.loads(line.decode("utf-8-sig"))  # what Windows puts before the first one
            except UnicodeDecodeError as error:
                text = line.decode("utf-8", "replace")
                yield number, Reject(source_id, "not UTF-8", str(error), {"line": text})
            except (ValueError, RecursionError) as error:
                yield number, Reject(source_id, "bad JSON", str(error), {"line": line.decode("utf-8")})
            else:
                yield number, _object(source_id, raw)


def read_json(path: Path) -> Numbered:
    """An array of rows, or a row a line."""
    # An array must be read whole; JSON lines under the wrong name need not be.
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from read_jsonl(path)
        return
    for number, raw in enumerate(json.loads(text), 1):
        yield number, _object(f"{path.name}:{number}", raw)


def read_csv(path: Path) -> Numbered:
    """Every value is text; an empty one is none."""
    # Strict, because a quote that is never closed would take all further rows into one value.
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, raw in enumerate(csv.DictReader(lines, strict=True), 1):
            yield number, {str(name): value or None for name, value in raw.items()}


def read_parquet(path: Path) -> Numbered:
    """Rows of a Parquet file. Raises ValueError when it holds fewer than it says."""
    import datasets
    import pyarrow.parquet

    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    number = 0
    for number, raw in enumerate(_undecoded(rows), 1):
        yield number, raw
    # A damaged page may be read as an empty one.
    recorded = pyarrow.parquet.read_metadata(path).num_rows
    if number != recorded:
        raise ValueError(f"damaged: {number} of {recorded} rows can be read")


# Readers by kind of file.
FILES: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
}


def _hub(hub_id: str, config: str | None, split: str) -> Numbered:
    import datasets

    rows = datasets.load_dataset(hub_id, config, split=split, streaming=True)
    yield from enumerate(_undecoded(rows), 1)


def _undecoded(rows: Any) -> Any:
    """Rows of `datasets` with their images as they lie in the file: `images` checks and decodes them."""
    import datasets

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _object(source_id: str, raw: Any) -> Raw | Reject:
    """What a piece of JSON holds, if it is an object that can be written again."""
    # What cannot be written again as UTF-8 fits neither Parquet nor a tokenizer.
    try:
        text = json.dumps(raw, ensure_ascii=False)
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON's \\ud800 alone
        return Reject(source_id, "not UTF-8", "half of a surrogate pair", {"line": json.dumps(raw)})
    except RecursionError:
        return Reject(source_id, "bad JSON", "nested too deeply")
    if not isinstance(raw, dict):
        return Reject(source_id, "schema", "not an object", {"line": text})
    return raw
