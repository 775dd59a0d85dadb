"""Files of a run: JSON and JSON lines written whole, hashes, and what a full disk says."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunebook.recipe.errors import UserError

FULL = re.compile(
    r"No space left|disk is full|quota exceeded|File too large"
    r"|PytorchStreamWriter failed writing|unexpected pos \d+ vs",
    re.IGNORECASE,
)
"""What safetensors, tokenizers, SQLite and torch (the last two) say when a file can't grow: no OSError."""


PROGRESS = "progress.json"
"""Beside what a stage is writing: how many `steps` there will be, and were `done`, or lines of a file."""

ANSWERS_KEY = ".key"
"""The end of the name of the file that says what the answers of another depend on: `samples.jsonl.key`."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a caller treats a damaged record as one that is missing
        return {}
    return content if isinstance(content, dict) else {}


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines, one at a time; none when the file is missing.

    A line that a kill has cut short is left out.
    """
    if not path.exists():
        return
    # Bytes, because a kill may also cut a character in two, and text has more line ends than "\n".
    with path.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            yield record


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a free path beside `path`; the file or folder made there becomes `path` when the block succeeds.

    A reader sees the old content or the new, never half of it. A folder must be new.
    """
    # Named by the thread: several threads may write the same image.
    temporary = path.with_name(f".{path.name}.{threading.current_thread().name}.tmp")
    _remove(temporary)  # a kill may have left it
    try:
        yield temporary
        temporary.replace(path)
    finally:
        _remove(temporary)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills on first use; returns it. Safe when several processes ask at once."""
    if not _is_filled(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_filled(folder):  # another process may have made it while this one waited
                with written_whole(folder) as partial:
                    make(partial)
    return folder


def checksums(folder: Path, without: Iterable[str] = ()) -> dict[str, str]:
    """The hash of each file by its path in `folder`; `without` names what is left out at its top."""
    # Sorted, so that two folders with the same files have the same record.
    hashes = {}
    for entry in sorted(folder.iterdir()):
        if entry.name in without:
            continue
        files = [entry] if entry.is_file() else sorted(entry.rglob("*"))
        for file in files:
            if file.is_file():
                hashes[file.relative_to(folder).as_posix()] = file_hash(file)
    return hashes


def intact(path: Path) -> Path:
    """The same path, if the file or folder is as its finished stage has left it. Others pass.

    Raises UserError that names a file which is damaged or missing, and the command that makes it again.
    """
    # The stage's folder is the nearest one above with a record; without one, nothing is known of the file.
    folder = path
    for parent in (path, *path.parents):
        if (parent / "stage.json").exists():
            folder = parent
            break
    stage = read_json(folder / "stage.json")
    for name, recorded_hash in stage.get("files", {}).items():
        file = folder / name
        if not file.is_relative_to(path):
            continue
        if file.is_file() and file_hash(file) == recorded_hash:
            continue
        state = "damaged" if file.exists() else "missing"
        raise UserError(
            f"{file} is {state}: it is not what the stage has left; "
            f"`{stage['command']} --force` makes it again"
        )
    return path


def file_hash(path: Path) -> str:
    """A short hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def fingerprint(value: Any) -> str:
    """A short stable hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def disk_full_as_user_error(where: Path) -> Iterator[None]:
    """Turns what a full disk, a full quota or a limit on the size of files raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Libraries wrap what the system said in errors of their own.
        cause: BaseException | None = error
        while cause is not None and not _says_full(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        place = getattr(cause, "filename", None) or where
        raise UserError(
            f"no space left on the disk of {place}; free some and run the same command: it goes on from there"
        ) from None


def log_history(folder: Path) -> list[dict[str, Any]]:
    """The logged metrics of a stage (`metrics.jsonl`), one entry per log."""
    return list(read_jsonl(folder / "metrics.jsonl"))


def tokens_seen(entry: dict[str, Any]) -> float | None:
    """The tokens that a training had seen at a log entry: TRL's count, or on a GPU that of transformers."""
    count = entry.get("num_tokens", entry.get("num_input_tokens_seen"))
    return None if count is None else float(count)


def duration_s(record: dict[str, Any]) -> float:
    """The seconds that a finished stage has taken, of its record."""
    started = datetime.fromisoformat(record["started"])
    return (datetime.fromisoformat(record["ended"]) - started).total_seconds()


def _is_filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _remove(path: Path) -> None:
    """Remove a file or a folder that may be there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()


def _says_full(error: BaseException) -> bool:
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", 0) in codes or FULL.search(str(error)) is not None
