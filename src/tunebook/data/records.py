"""Raw records out of files and hub data sets, numbered, some of them drawn; whatever their columns mean."""

from __future__ import annotations

import csv
import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tunebook.data.rows import Reject, share
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.files import find_file
from tunebook.recipe.sections import Rows

Raw = dict[str, Any]


def renamed(raw: Raw, columns: dict[str, str]) -> Raw:
    """A raw row with our names beside its own; `columns` is {our name: its name}, and what it lacks stays missing."""
    return raw | {ours: raw.get(theirs) for ours, theirs in columns.items()}


def drawn(
    found: Iterable[tuple[int, Raw | Reject]], rows: Rows, seed: int
) -> Iterator[tuple[int, Raw | Reject]]:
    """So many of the numbered records, or a share of them, in their order. A record is drawn by a hash of its content and the seed: it
    stays drawn when others are added or moved, as far as the number allows."""

    def luck(item: tuple[int, Raw | Reject]) -> float:
        record = item[1].row if isinstance(item[1], Reject) else item[1]
        return share(f"{seed}/{json.dumps(record, sort_keys=True, default=str)}")

    if isinstance(rows, float):
        yield from (item for item in found if luck(item) < rows)
    elif rows:
        yield from sorted(heapq.nsmallest(rows, found, key=luck), key=lambda item: item[0])
    else:
        yield from found


def source_name(path: str, hub_split: str) -> str:
    """What a source's rows are called in reports and in the quarantine: the file's name, or that of the hub id with its split."""
    return Path(path).name if is_file(path) else f"{Path(path).name}/{hub_split}"


def is_file(path: str) -> bool:
    """Whether a source is a file, by its kind; else it is a hub id."""
    return Path(path).suffix.lower() in FILES


def records(
    path: str, hub_split: str, key: str, hub_config: str | None = None
) -> Iterator[tuple[int, Raw | Reject]]:
    """Numbered raw records of a file of a kind in `FILES` (from 1; of .jsonl the line, as an editor counts) or of a hub data set.

    Raises UserError that names the recipe's `key` when it cannot be read.
    """
    kind = Path(path).suffix.lower()
    if kind[1:].isalpha() and not is_file(path):  # a hub id may end in a number: `data-v1.5`
        raise UserError(f"{key}: cannot read {path}; give a {', '.join(FILES)} file or a hub id")
    try:
        if is_file(path):
            yield from FILES[kind](find_file(path))
        else:
            import datasets

            yield from enumerate(
                _undecoded(datasets.load_dataset(path, hub_config, split=hub_split, streaming=True)), 1
            )
    except (OSError, ValueError, RecursionError, csv.Error) as error:  # not found, no network, a damaged file
        raise UserError(f"{key}: cannot read {path} ({first_line(error)})") from None


def _json(path: Path) -> Iterator[tuple[int, Raw | Reject]]:
    """An array of rows, or a row a line."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from _jsonl(path)
        return
    for number, raw in enumerate(json.loads(text), 1):
        yield number, _object(f"{path.name}:{number}", raw)


def _object(source_id: str, raw: Any) -> Raw | Reject:
    """What a piece of JSON holds, if it is an object that can be written again."""
    try:
        text = json.dumps(raw, ensure_ascii=False)
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON's \\ud800 alone
        return Reject(source_id, "not UTF-8", "half of a surrogate pair", {"line": json.dumps(raw)})
    except RecursionError:
        return Reject(source_id, "bad JSON", "nested too deeply")
    return raw if isinstance(raw, dict) else Reject(source_id, "schema", "not an object", {"line": text})


def _csv(path: Path) -> Iterator[tuple[int, Raw | Reject]]:
    """Every value is text; an empty one is none."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, raw in enumerate(csv.DictReader(lines, strict=True), 1):
            yield number, {str(name): value or None for name, value in raw.items()}


def _undecoded(rows: Any) -> Any:
    """Rows of `datasets` with their images as they lie in the file: they are checked and decoded with the rest."""
    import datasets

    for name, feature in (rows.features or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _parquet(path: Path) -> Iterator[tuple[int, Raw | Reject]]:
    import datasets
    import pyarrow.parquet

    number = 0
    for number, raw in enumerate(
        _undecoded(datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)), 1
    ):
        yield number, raw
    if number != (
        there := pyarrow.parquet.read_metadata(path).num_rows
    ):  # a damaged page may be read as an empty one
        raise ValueError(f"damaged: {number} of {there} rows can be read")


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            source_id = f"{path.name}:{number}"
            if not line.strip():
                continue
            try:
                raw = json.loads(line.decode("utf-8-sig"))  # what Windows puts before the first one
            except UnicodeDecodeError as error:
                yield (
                    number,
                    Reject(source_id, "not UTF-8", str(error), {"line": line.decode("utf-8", "replace")}),
                )
            except (ValueError, RecursionError) as error:
                yield number, Reject(source_id, "bad JSON", str(error), {"line": line.decode("utf-8")})
            else:
                yield number, _object(source_id, raw)


FILES: dict[str, Callable[[Path], Iterator[tuple[int, Raw | Reject]]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}
"""Readers by kind of file."""
