"""Where the project lies, and how files named in a recipe are found and read."""

from __future__ import annotations

import os
from pathlib import Path

from tunebook.recipe.errors import UserError, did_you_mean, first_line, shorten

ROOT = Path(os.environ.get("TUNEBOOK_HOME") or Path(__file__).parents[3]).resolve()


def read_text(path: Path) -> str:
    """A text file. Raises UserError when it cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {first_line(error)}") from None


def find_file(path: str | Path) -> Path:
    """A file named in a recipe: from the working folder, or from the project's root.

    Raises UserError when there is none.
    """
    name = str(path)
    neighbours = []
    try:
        # An absolute path comes out of both unchanged.
        for candidate in (Path(path), ROOT / path):
            if candidate.is_file():
                return candidate.resolve()
        folder = (ROOT / path).parent
        if folder.is_dir():
            neighbours = [str(Path(path).parent / file.name) for file in folder.iterdir()]
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise UserError(f"no file {shorten(name)}: {error.strerror}") from None
    hint = did_you_mean(name, neighbours)
    if not hint and not Path(path).is_absolute():
        hint = f" in {Path.cwd()}"
        if Path.cwd() != ROOT:
            hint += f" or {ROOT}"
    raise UserError(f"no file {shorten(name, 200)}{hint}")
