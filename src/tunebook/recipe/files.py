"""Where the project lies, and how files named in a recipe are found and read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from tunebook.recipe.errors import UserError, did_you_mean, first_line, shorten

SCHEMA = Path("configs") / "recipe.schema.json"

ROWS_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
"""What people give in the place of a recipe, and mean the rows that one is to be written for."""


def _packaged() -> Path:
    """Where the shipped recipes, prompts, notebooks and data lie: a checkout, or inside the package."""
    checkout = Path(__file__).parents[3]
    return checkout if (checkout / SCHEMA).is_file() else Path(__file__).parents[1] / "project"


def _root() -> Path:
    """The project that one works in: `$TUNEBOOK_HOME`, else the checkout that this code is in.

    Of an installed package it is the nearest folder, from where one works upwards, that `tunebook new` has
    laid out, or where one works.
    """
    home = os.environ.get("TUNEBOOK_HOME")
    if home:
        return Path(home).resolve()
    if PACKAGED.name != "project":
        return PACKAGED
    # Someone may work in `notebooks/` or deeper.
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / SCHEMA).is_file():
            return folder
    return Path.cwd()


PACKAGED = _packaged().resolve()
"""The shipped files; of a checkout the same as `ROOT`."""

ROOT = _root()
"""Where runs and `.env` are, and files that a recipe names are looked for."""


def program() -> str:
    """How `tunebook` is called here: by `uv run`, where this was, else by its name."""
    return "uv run tunebook" if "UV_RUN_RECURSION_DEPTH" in os.environ else "tunebook"


def shipped(folder: str) -> Path:
    """A folder of shipped files (`configs`, `notebooks`): that of the project, or of the package."""
    return ROOT / folder if (ROOT / folder).is_dir() else PACKAGED / folder


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
        file_path = find_path(path, folders, Path.is_file)
        if file_path:
            return file_path.resolve()
        for folder in places:
            if (folder / path).is_dir():
                raise UserError(f"{shorten(name, 200)} is a folder, and a file is asked for")
            parent = (folder / path).parent
            if parent.is_dir():
                neighbours += [str(Path(path).parent / file.name) for file in parent.iterdir()]
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise UserError(f"no file {shorten(name)}: {error.strerror}") from None
    hint = did_you_mean(name, _of_a_kind(name, neighbours))
    if not hint and not Path(path).is_absolute():
        hint = f" in {' or '.join(map(str, places))}"
    raise UserError(f"no file {shorten(name, 200)}{hint}")


def _of_a_kind(name: str, neighbours: list[str]) -> list[str]:
    """Of the files beside a missing one, those that could be meant: rows for rows, YAML for YAML."""
    suffix = Path(name).suffix
    for kinds in (ROWS_SUFFIXES, (".yaml", ".yml"), (".py",)):
        if suffix in kinds:
            return [file for file in neighbours if Path(file).suffix in kinds]
    return neighbours


def find_path(
    path: str | Path, folders: Iterable[str | Path] = (), there: Callable[[Path], bool] = Path.exists
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
    places = [*(ROOT / folder for folder in folders), Path.cwd(), ROOT, PACKAGED]
    return list(dict.fromkeys(places))
