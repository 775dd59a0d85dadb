"""Files of a run: JSON and JSON lines written whole, hashes, and what a full disk says."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError

FULL = re.compile(
    r"No space left|disk is full|quota exceeded|File too large|PytorchStreamWriter failed writing|unexpected pos \d+ vs",
    re.I,
)
"""What safetensors, tokenizers, SQLite and torch (the last two) say when a file can't grow: they raise no OSError."""


def checksums(folder: Path, without: Iterable[str] = ()) -> dict[str, str]:
    """The hash of each file in a folder by its path in it; `without` names what is left out at the top of the folder."""
    top = (p for p in sorted(folder.iterdir()) if p.name not in without)
    files = (f for p in top for f in ([p] if p.is_file() else sorted(p.rglob("*"))) if f.is_file())
    return {f.relative_to(folder).as_posix(): file_hash(f) for f in files}


def intact(path: Path) -> Path:
    """The same path, of a file or folder in a finished stage's folder, if it is as the stage has left it. What no stage has recorded
    passes.

    Raises UserError that names a file which is damaged or missing, and the command that makes it again.
    """
    folder = next((p for p in (path, *path.parents) if (p / "stage.json").exists()), path)
    stage = read_json(folder / "stage.json")
    for name, known in stage.get("files", {}).items():
        file = folder / name
        if file.is_relative_to(path) and not (file.is_file() and file_hash(file) == known):
            what = "damaged" if file.exists() else "missing"
            raise UserError(
                f"{file} is {what}: it is not what the stage has left; `{stage['command']} --force` makes it again"
            )
    return path


def file_hash(path: Path) -> str:
    """A short hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextlib.contextmanager
def disk_full_as_user_error(where: Path) -> Iterator[None]:
    """Turns what a full disk, a full quota or a limit on the size of files raises (ENOSPC, EDQUOT, EFBIG, `FULL`) into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause and not (
            getattr(cause, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or FULL.search(str(cause))
        ):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        place = getattr(cause, "filename", None) or where
        raise UserError(
            f"no space left on the disk of {place}; free some and run the same command: it goes on from there"
        ) from None


def fingerprint(value: Any) -> str:
    """A short stable hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never half of it."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def log_history(folder: Path) -> list[dict[str, Any]]:
    """The logged metrics of a stage (`metrics.jsonl`), one entry per log."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
