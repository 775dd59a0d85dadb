"""Folders that are whole or not there: the lock of a run, and a new result in the place of an old one."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tunebook.recipe.errors import UserError
from tunebook.runs.files import read_json, write_json


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """One process at a time writes in a run folder; the second is told who the first is."""
    run_dir.mkdir(parents=True, exist_ok=True)
    owner = run_dir / ".owner.json"
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            words = [Path(argument).name for argument in sys.argv[:2]]
            write_json(owner, {"pid": os.getpid(), "command": " ".join(words)})
            yield
    except Timeout:
        other = read_json(owner)
        raise UserError(
            f"{run_dir} is in use by process {other.get('pid', '?')} ({other.get('command', '?')}): "
            "wait for it, or choose another --run"
        ) from None


def replace(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`, which may exist."""
    old = stepped_aside(target)
    # No rename replaces a folder that is not empty: the old one steps aside and is removed afterwards.
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Mend what a kill in the middle of `replace` left."""
    old = stepped_aside(target)
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def stepped_aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
