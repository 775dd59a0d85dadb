"""Where the project lies, and how files named in a recipe are found and read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from tunebook.recipe.errors import UserError, did_you_mean, first_line, shorten

ROOT = Path(os.environ.get("TUNEBOOK_HOME") or Path(__file__).parents[3]).resolve()


def read_text(path: Path) -> str:
    """A text file. Raises UserError when it cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {first_line(error)}") from None


def find_file(path: str | Path, folders: Iterable[str | Path] = ()) -> Path:
    """A file named in a recipe: beside the recipe, then from the working folder, then from the project.

    Args:
        path: As it is named.
        folders: Where to look first: `recipe.folders`, absolute or from the project's root.

    Raises UserError when there is none.
    """
    name = str(path)
    places = _places(folders)
    neighbours = []
    try:
        found = find_path(path, folders, Path.is_file)
        if found:
            return found.resolve()
        for folder in places:
            parent = (folder / path).parent
            if parent.is_dir():
                neighbours += [str(Path(path).parent / file.name) for file in parent.iterdir()]
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise UserError(f"no file {shorten(name)}: {error.strerror}") from None
    hint = did_you_mean(name, neighbours)
    if not hint and not Path(path).is_absolute():
        hint = f" in {' or '.join(map(str, places))}"
    raise UserError(f"no file {shorten(name, 200)}{hint}")


def find_path(
    path: str | Path,
    folders: Iterable[str | Path] = (),
    there: Callable[[Path], bool] = Path.exists,
) -> Path | None:
    """The first place where a file or folder named in a recipe is; None where it is in none.

    Args:
        path: As it is named.
        folders: Where to look first, as for `find_file`.
        there: What counts as being there.
    """
    for folder in _places(folders):
        # An absolute path comes out of each unchanged.
        if there(folder / path):
            return folder / path
    return None


def _places(folders: Iterable[str | Path]) -> list[Path]:
    """Where files are looked for, in order, each place once."""
    places = [*(ROOT / folder for folder in folders), Path.cwd(), ROOT]
    return list(dict.fromkeys(places))
