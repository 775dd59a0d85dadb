"""Raw records out of files and hub data sets, numbered, some of them drawn; whatever their columns mean."""

from __future__ import annotations

import csv
import heapq
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tunebook.data import files
from tunebook.data.files import is_file, kind_of, open_bytes, open_text
from tunebook.data.json_rows import Numbered, read_json
from tunebook.data.rows import Raw, Reject, hash_fraction
from tunebook.models import hub
from tunebook.recipe.errors import UserError, first_line, say_once
from tunebook.recipe.sections import Rows

# The same with what reports call them: `rows.jsonl:3`.
Named = Iterator[tuple[str, Raw | Reject]]


# Python's own limit of a cell is 128 KiB, which a long document has.
csv.field_size_limit(2**24)


def all_records(path: str, hub_split: str, key: str, hub_config: str | None = None) -> Named:
    """The raw records of all files that a path stands for, or of a hub data set, each with its source id.

    Args:
        path: A file, a pattern, a folder of files or of `save_to_disk`, or a hub id.
        hub_split: Of a hub id or a folder of `save_to_disk`.
        key: Of the recipe, for messages.

    Raises UserError that names the recipe's `key` when it cannot be read.
    """
    found = files.tables(path, key)
    if len(found) > 1:
        files.say_which(Path(path).name, list(found))
    if not found:
        found = {source_name(path, hub_split): Path(path)}
    for name, place in found.items():
        for number, record in records(str(place), hub_split, key, hub_config):
            source_id = f"{name}:{number}"
            if isinstance(record, Reject):
                record.source_id = source_id
                yield source_id, record
            else:
                yield source_id, _without_nan(record)


def _without_nan(value: Any, depth: int = 4) -> Any:
    """A value with none in place of each NaN: pandas writes one into every empty cell, of texts too.

    Args:
        depth: How far down is looked; the keys of a call in a message in a column are the fourth.
    """
    if depth == 0:
        return value
    if isinstance(value, dict):
        return {name: _without_nan(item, depth - 1) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item, depth - 1) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def records(path: str, hub_split: str, key: str, hub_config: str | None = None) -> Numbered:
    """Numbered raw records of one file, of a folder of `save_to_disk`, or of a hub data set.

    Raises UserError that names the recipe's `key` when it cannot be read.
    """
    try:
        if Path(path).is_dir() and files.is_saved_dataset(Path(path)):
            yield from _saved(Path(path), hub_split)
            return
        tables = list(files.tables(path, key).values())
        if len(tables) > 1:
            raise UserError(f"{key}: {path} are {len(tables)} files, give one")
        if tables:
            yield from READERS[kind_of(tables[0])](tables[0])
        else:
            yield from _hub(path, hub_config, hub_split)
    except (OSError, ValueError, RecursionError, csv.Error) as error:  # not found, no network, a damaged file
        raise UserError(f"{key}: cannot read {path} ({first_line(error)})") from None


def source_name(path: str, hub_split: str) -> str:
    """What a source's rows are called in reports: by the file, or by hub id and split."""
    name = Path(path).name
    return name if is_file(path) else f"{name}/{hub_split}"


def renamed(raw: Raw, columns: dict[str, str]) -> Raw:
    """A raw row with columns moved to our names; `columns` is {our name: its name}.

    A column is never read under its own name besides: where `answer` is the completion it is no exact answer.
    """
    row = {name: value for name, value in raw.items() if name not in columns.values()}
    for our_name, its_name in columns.items():
        row[our_name] = raw.get(its_name)
    return row


def drawn(named: Iterable[tuple[str, Raw | Reject]], rows: Rows, seed: int) -> Named:
    """So many of the records, or a share of them, in their order.

    A record is drawn by a hash of its content and the seed: it stays drawn when others are added or moved, as
    far as the number allows.
    """

    def luck(record: Raw | Reject) -> float:
        content = record.row if isinstance(record, Reject) else record
        return hash_fraction(f"{seed}/{json.dumps(content, sort_keys=True, default=str)}")

    if isinstance(rows, float):
        for source_id, record in named:
            if luck(record) < rows:
                yield source_id, record
    elif rows:
        # Of all records only so many are in memory at a time.
        numbered = enumerate(named)
        luckiest = heapq.nsmallest(rows, numbered, key=lambda item: luck(item[1][1]))
        for _, item in sorted(luckiest, key=lambda item: item[0]):
            yield item
    else:
        yield from named


def read_csv(path: Path) -> Numbered:
    """Every value is text; an empty one is none. Columns are separated by `,`, `;`, a tab or `|`.

    The separator is the one that gives the header the most columns, or what a first line `sep=;` says, which
    Excel writes and reads.
    """
    with open_text(path) as lines:
        header = next((line for line in lines if line.strip()), "")
        separator = ""
        lines_before = 0
        if header.lower().startswith("sep="):
            separator = header.strip()[4:5]
            header = next(lines, "")
            lines_before = 1
        head = [header]
        # Excel's names of columns may have line breaks, in quotes.
        while header.count('"') % 2 and len(head) < LONGEST_HEADER:
            head.append(next(lines, ""))
            header += head[-1]
        separator = separator or _separator(header)
        if separator != SEPARATORS[kind_of(path)]:
            say_once(f"{path.name}: columns are separated by {separator!r}")
        # A space before a quote would make the quote a part of the value.
        has_spaces = f"{separator} " in header
        # Strict, because a quote that is never closed would take all further rows into one value.
        reader = csv.reader(
            itertools.chain(head, lines), delimiter=separator, skipinitialspace=has_spaces, strict=True
        )
        names = _distinct([name.strip() for name in next(reader, [])], path)
        for number, cells in enumerate(_cells(reader, lines_before), 1):
            if any(_looks_like_rows(cell, len(names), separator) for cell in cells):
                say_once(
                    f"WARNING: {path.name}: lines of row {number} look like rows of their own: "
                    "is a quote before them not closed?"
                )
            yield number, _row_of_cells(f"{path.name}:{number}", names, cells, separator)


# Lines of the names of columns.
LONGEST_HEADER = 10


def _distinct(names: list[str], path: Path) -> list[str]:
    """Names of columns; a further one of the same name is numbered as pandas does it: `answer.1`."""
    distinct: list[str] = []
    for i, name in enumerate(names):
        number = names[:i].count(name)
        # Without a name is what Excel's cells beside the table leave.
        if name and number:
            say_once(f"{path.name}: a further column {name!r} is read as '{name}.{number}'")
            distinct.append(f"{name}.{number}")
        else:
            distinct.append(name)
    return distinct


def _cells(reader: Any, lines_before: int) -> Iterator[list[str]]:
    """The rows of a CSV reader that has read the header; empty lines are none.

    Raises ValueError that names the line where a quote does not fit.
    """
    begins = lines_before + reader.line_num + 1
    try:
        for cells in reader:
            begins = lines_before + reader.line_num + 1
            if cells:
                yield cells
    except csv.Error as error:
        raise ValueError(
            f"{error} in the row that begins in line {begins}: a quote in a quoted text is written twice"
        ) from None


def _looks_like_rows(cell: str, columns: int, separator: str) -> bool:
    """Whether the lines of a cell have as many cells as the header: a quote may have swallowed rows."""
    # The first line and the last belong to the rows in which the quotes stand.
    lines = cell.splitlines()[1:-1]
    return columns > 1 and len(lines) > 1 and all(line.count(separator) == columns - 1 for line in lines)


# What separates columns where nothing else does it better.
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def _separator(header: str) -> str:
    """The separator that gives a header the most columns; of two, one that no space follows.

    In `Question, short;Answer` the comma belongs to a name.
    """
    best = ","
    most = (1, True)
    for separator in (",", ";", "\t", "|"):
        try:
            (names,) = csv.reader([header.strip("\r\n")], delimiter=separator, strict=True)
        except (csv.Error, ValueError):  # a quote that the next character does not fit
            continue
        fit = (len(names), f"{separator} " not in header)
        if fit > most:
            best = separator
            most = fit
    return best


def _row_of_cells(source_id: str, names: list[str], cells: list[str], separator: str) -> Raw | Reject:
    # Text with a bare separator in it would be cut there.
    if any(cell.strip() for cell in cells[len(names) :]):
        detail = (
            f"{len(cells)} cells, the header has {len(names)}: put quotes round text with {separator!r} in it"
        )
        return Reject(source_id, "too many cells", detail, {"cells": cells})
    row: Raw = dict.fromkeys(names)
    for name, cell in zip(names, cells, strict=False):
        row[name] = cell or None
    return row


def read_parquet(path: Path) -> Numbered:
    """Rows of a Parquet file, images as they lie in it.

    Raises ValueError when it holds fewer rows than it says.
    """
    import pyarrow.parquet

    number = 0
    try:
        with open_bytes(path) as file:
            # Parquet is read from its end, which a compressed stream does not reach.
            content = path if path.suffix.lower() == ".parquet" else pyarrow.BufferReader(file.read())
        table = pyarrow.parquet.ParquetFile(content)
        for batch in table.iter_batches(batch_size=256):
            for raw in batch.to_pylist():
                number += 1
                yield number, raw
    except pyarrow.ArrowException as error:  # not all of its kinds are ValueErrors
        raise ValueError(first_line(error)) from None
    # A damaged page may be read as an empty one.
    recorded = table.metadata.num_rows
    if number != recorded:
        raise ValueError(f"damaged: {number} of {recorded} rows can be read")


# Readers by kind of file.
READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".tsv": read_csv,
}


def _saved(folder: Path, split: str) -> Numbered:
    """Rows of a folder that `save_to_disk` has written. Raises ValueError when it has no such split."""
    import datasets

    rows = datasets.load_from_disk(str(folder))
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise ValueError(f"no split {split}; there are: {', '.join(rows)}")
        rows = rows[split]
    yield from enumerate(_undecoded(rows), 1)


def _hub(hub_id: str, config: str | None, split: str) -> Numbered:
    hub.use_if_reachable()
    import datasets

    datasets.config.HF_HUB_OFFLINE |= hub.is_offline()
    rows = datasets.load_dataset(hub_id, config, split=split, streaming=True)
    yield from enumerate(_undecoded(rows), 1)


def _undecoded(rows: Any) -> Any:
    """Rows of `datasets` with their images as they lie in the file: `images` checks and decodes them."""
    import datasets

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows
