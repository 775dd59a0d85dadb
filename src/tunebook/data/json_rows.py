"""Rows out of JSON files: a row a line, one array, or an array wrapped in an object."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tunebook.data.files import kind_of, open_bytes, open_text
from tunebook.data.rows import Raw, Reject

# Raw rows (or what cannot be read as one), numbered from 1; of .jsonl by the line, as an editor counts.
Numbered = Iterator[tuple[int, Raw | Reject]]

# An object with one of these is a row; without, `{"version": 1, "data": [...]}` may be the wrapping of rows.
IN_ROWS = {"messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected"}
IN_ROWS |= {"instruction", "question", "problem", "query", "input", "output", "text", "completions"}


def read_json(path: Path) -> Numbered:
    """An array of rows, an array wrapped in an object, or a row a line; the same for .jsonl.

    Raises ValueError for what is neither.
    """
    rows = _whole(path)
    if rows is None:
        yield from _read_lines(path)
        return
    for number, raw in enumerate(rows, 1):
        yield number, _object(f"{path.name}:{number}", raw)


def _read_lines(path: Path) -> Numbered:
    """A row a line; a line that is none is a reject."""
    for number, line in enumerate(_byte_lines(path), 1):
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


def _byte_lines(path: Path) -> Iterator[bytes]:
    """Lines as bytes, because each is decoded by itself: one that is not UTF-8 spoils no other."""
    with open_bytes(path) as lines:
        head = lines.readline()
        if not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            yield head
            yield from lines
            return
    # PowerShell's `>` writes UTF-16.
    with open_text(path) as texts:
        for text in texts:
            yield text.encode("utf-8", "surrogatepass")


def _whole(path: Path) -> list[Any] | None:
    """The rows of a file that is one piece of JSON; None when it has a row a line."""
    filled = (line for line in _byte_lines(path) if line.strip())
    first = next(filled, b"").removeprefix(codecs.BOM_UTF8).lstrip()
    has_more = next(filled, None) is not None
    is_array = first.startswith(b"[")
    is_json = kind_of(path) == ".json"
    # Of many rows only the first line is looked at: all of them may not fit in memory.
    if has_more and not is_array and (not is_json or _is_json(first)):
        return None
    try:
        if has_more:
            with open_text(path) as file:
                value = json.load(file)
        else:
            value = json.loads(first.decode("utf-8"))
    except (ValueError, RecursionError):
        if is_array and is_json:
            raise
        return None
    if isinstance(value, dict):
        return _unwrapped(value, path.name, is_json)
    if not isinstance(value, list):
        return None
    if is_json:
        return value
    if not value or not all(isinstance(row, dict) for row in value):
        return None
    tqdm.write(f"{path.name}: one array of {len(value)} rows, read as .json is")
    return value


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _unwrapped(value: Raw, name: str, is_json: bool) -> list[Any]:
    """The rows in `{"version": 1, "data": [...]}`; an object that wraps none is a row itself."""
    if is_json and _are_columns(value):
        raise ValueError("columns instead of rows; with pandas: to_json(path, orient='records')")
    if not IN_ROWS.isdisjoint(value):
        return [value]
    lists: dict[str, list[Any]] = {}
    for key, rows in value.items():
        is_list_of_rows = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
        if is_list_of_rows:
            lists[key] = rows
    if len(lists) > 1:
        raise ValueError(f"several lists of rows: {', '.join(lists)}; save the one that is meant alone")
    if lists:
        ((key, rows),) = lists.items()
        tqdm.write(f"{name}: the {len(rows)} rows under {key!r} are read")
        return rows
    return [value]


def _are_columns(value: Raw) -> bool:
    """Whether an object holds columns, each a list or, as pandas' `to_json()` writes them, `{"0": ...}`."""
    sizes = set()
    for column in value.values():
        # A list of texts, or an object with the numbers of rows for keys; messages are neither.
        if not isinstance(column, list | dict) or any(isinstance(cell, dict | list) for cell in column):
            return False
        if isinstance(column, dict) and not all(key.isdigit() for key in column):
            return False
        sizes.add(len(column))
    return len(value) > 1 and len(sizes) == 1 and max(sizes) > 1


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
