"""MM_Math's rows (Sun et al. 2024): a question, its figure and a solution in LaTeX that ends in `\\boxed{}`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from school_geometry import figures
from tunebook.checkers.maths import boxed
from tunebook.data import images
from tunebook.data.records import Raw, records
from tunebook.data.rows import Reject, Row
from tunebook.models.backend import cache_dir
from tunebook.models.image_input import BadImage
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import MMMathSource, Recipe

SAMPLE = 1
"""Version of the figures that `sample` draws; a new number draws them anew."""


def read_mm_math(source: MMMathSource, recipe: Recipe, prompts: Any) -> Iterator[Row | Reject]:
    """MM_Math's rows (Sun et al. 2024): the last `\\boxed{}` of `solution` is the answer, `difficult` the slice, `knowledge` the group."""
    path = str(mm_math_sample(source.rows, recipe.seed)) if source.path == "sample" else source.path
    place, found = _mm_math(path, source.hub_split)
    find = images.finder(place)
    for number, raw in found:
        source_id = f"{Path(path).name}:{number}"
        if isinstance(raw, Reject):
            yield raw
            continue
        kept = {k: v for k, v in raw.items() if isinstance(v, str | int | float)}
        try:
            missing = next((k for k in ("question", "solution") if not isinstance(raw.get(k), str)), None)
            if missing:
                raise BadImage("schema", f"{missing}: not text")
            shown = images.of_row(raw, find)
            if not shown:
                raise BadImage("image missing", "the row names no image")
        except BadImage as error:
            yield Reject(source_id, error.reason, str(error), kept)
            continue
        if (gold := boxed(raw["solution"])) is None or not gold.strip():
            yield Reject(source_id, "no answer", "the solution has no \\boxed{}", kept)
            continue
        level, knowledge = (str(raw.get(column) or "") for column in ("difficult", "knowledge"))
        solution = [{"role": "assistant", "content": raw["solution"].strip()}]
        yield Row(
            source_id,
            source.split or "",
            prompts.ask(raw["question"]),
            solution,
            gold,
            level,
            knowledge,
            level,
            shown,
        )


def mm_math_sample(rows: int, seed: int) -> Path:
    """The folder with the project's own problems as figures, drawn once into the user's cache."""
    folder = cache_dir() / f"mm-math-sample-v{SAMPLE}-{rows}-{seed}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            try:
                figures.write_sample(folder, rows, seed)
            except ValueError as error:
                raise UserError(str(error)) from None
    return folder


def _mm_math(path: str, hub_split: str) -> tuple[Path, Iterator[tuple[int, Raw | Reject]]]:
    """Where images lie (a folder or a zip file) and the rows. Raises UserError when there is no such data."""
    if not Path(path).suffix and not Path(path).is_dir():
        path = _download(path)
    if not Path(path).is_dir():
        return Path(path).parent, records(path, hub_split, "data.sources")
    tables, archives = (sorted(Path(path).glob(kind)) for kind in ("*.jsonl", "*.zip"))
    if len(tables) != 1:
        raise UserError(f"data.sources: {path} should hold one .jsonl file, it holds {len(tables)}")
    packed = bool(archives) and not any(p.is_dir() for p in Path(path).iterdir())
    return archives[0] if packed else Path(path), records(str(tables[0]), hub_split, "data.sources")


def _download(hub_id: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(hub_id, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"data.sources: {hub_id} is neither a folder nor a data set of the hub that can be read ({first_line(error)})"
        ) from None
