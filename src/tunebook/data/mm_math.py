"""MM_Math's rows: a question, its figure and a solution in LaTeX that ends in `\\boxed{}`.

Source: Sun et al. 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from school_geometry import figures
from tunebook.checkers.maths import boxed
from tunebook.data import images
from tunebook.data.json_rows import Numbered
from tunebook.data.prompts import Prompts
from tunebook.data.records import records
from tunebook.data.rows import Raw, Reject, Row, Unusable
from tunebook.models.backend import cache_dir
from tunebook.models.image_input import BadImage
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import MMMathSource, Recipe

# Version of the figures that `sample` draws; a new number draws them anew.
SAMPLE = 1


def read_mm_math(source: MMMathSource, recipe: Recipe, prompts: Prompts) -> Iterator[Row | Reject]:
    """MM_Math's rows: `difficult` is the slice, `knowledge` the group, the last box the answer."""
    path = source.path
    if path == "sample":
        path = str(mm_math_sample(source.rows, recipe.seed))
    path = str(source.find_path(path))
    place, numbered = _open(path, source.hub_split)
    find_image = images.finder(place)
    for number, raw in numbered:
        source_id = f"{Path(path).name}:{number}"
        if isinstance(raw, Reject):
            yield raw
            continue
        try:
            row = _to_row(raw, source_id, prompts)
            row.images = images.of_row(raw, find_image)
            if not row.images:
                raise Unusable("image missing", "the row names no image")
            row.gold = _answer(row)
        except (Unusable, BadImage) as error:
            # Without the figure itself, which may be bytes.
            plain = {name: value for name, value in raw.items() if isinstance(value, str | int | float)}
            yield Reject(source_id, error.reason, str(error), plain)
            continue
        row.split = source.split or ""
        yield row


def mm_math_sample(rows: int, seed: int) -> Path:
    """The folder with the project's own problems as figures, drawn once into the user's cache."""
    folder = cache_dir() / f"mm-math-sample-v{SAMPLE}-{rows}-{seed}"
    # Locked, because several processes may ask for it at the same time.
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            try:
                figures.write_sample(folder, rows, seed)
            except ValueError as error:
                raise UserError(str(error)) from None
    return folder


def _to_row(raw: Raw, source_id: str, prompts: Prompts) -> Row:
    for name in ("question", "solution"):
        if not isinstance(raw.get(name), str):
            raise Unusable("schema", f"{name}: not text")
    difficulty = str(raw.get("difficult") or "")
    return Row(
        source_id,
        split="",
        prompt=prompts.ask(raw["question"]),
        completion=[{"role": "assistant", "content": raw["solution"].strip()}],
        slice=difficulty,
        group=str(raw.get("knowledge") or ""),
        difficulty=difficulty,
    )


def _answer(row: Row) -> str:
    answer = boxed(row.completion[0]["content"])
    if answer is None or not answer.strip():
        raise Unusable("no answer", "the solution has no \\boxed{}")
    return answer


def _open(path: str, hub_split: str) -> tuple[Path, Numbered]:
    """Where images lie (a folder or a zip file) and the rows. Raises UserError when there is no such data."""
    if not Path(path).suffix and not Path(path).is_dir():
        path = _download(path)
    folder = Path(path)
    if not folder.is_dir():
        return folder.parent, records(path, hub_split, "data.sources")
    tables = sorted(folder.glob("*.jsonl"))
    if len(tables) != 1:
        raise UserError(f"data.sources: {path} should hold one .jsonl file, it holds {len(tables)}")
    rows = records(str(tables[0]), hub_split, "data.sources")
    # The hub's copy has its figures in a zip file; where folders lie beside it, it has been unpacked.
    archives = sorted(folder.glob("*.zip"))
    if archives and not any(entry.is_dir() for entry in folder.iterdir()):
        return archives[0], rows
    return folder, rows


def _download(hub_id: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(hub_id, repo_type="dataset"))
    except (OSError, ValueError) as error:  # the errors of huggingface_hub are such
        raise UserError(
            f"data.sources: {hub_id} is neither a folder nor a data set of the hub that can be read "
            f"({first_line(error)})"
        ) from None
