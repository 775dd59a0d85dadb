"""Where rows come from: one function per format, each yielding `Row`s and, for what cannot be one, `Reject`s.

A row is conversational, as TRL wants it: `prompt` and `completion` are lists of messages. Raw rows of every format first become
`messages`, or `prompt` + `completion` (`FORMATS`), and then a row (`conversation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from school_geometry import problems
from tunebook.data import images
from tunebook.data.formats import FORMATS, Prompts, conversation, gold_of
from tunebook.data.mm_math import read_mm_math
from tunebook.data.records import drawn, records, renamed, source_name
from tunebook.data.rows import Reject, Row, split_of
from tunebook.models.image_input import BadImage
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import ChatSource, GeometrySource, Recipe


def read(recipe: Recipe, folder: Path) -> Iterator[Row | Reject]:
    """All sources of a recipe, one after the other, with their images checked and written to `folder`. The order is the same every time."""
    prompts = Prompts(recipe)
    for source in recipe.data.sources:
        reader: Callable[..., Iterator[Row | Reject]] = READERS[source.format]
        rows = images.stored(reader(source, recipe, prompts), folder, recipe.data.max_image_size)
        for row in images.together(rows, source.val, source.test):
            if isinstance(row, Row) and row.split == "train":
                row.use = source.use
            yield row


def read_geometry(source: GeometrySource, recipe: Recipe, prompts: Prompts) -> Iterator[Row]:
    """The project's own practice problems."""
    for split, number in (("train", source.train), ("val", source.val), ("test", source.test)):
        try:
            drawn = list(problems.problems_of_split(split, number, recipe.seed, source.wordings))
        except ValueError as error:
            raise UserError(str(error)) from None
        for p in drawn:
            yield Row(
                source_id=f"geometry/{p.id}/{p.wording}",
                split=split,
                prompt=prompts.ask(p.question),
                completion=[{"role": "assistant", "content": p.solution}],
                gold=p.answer,
                slice=p.slice,
                group=p.family,
                difficulty=p.difficulty,
            )


def read_chat(source: ChatSource, recipe: Recipe, prompts: Prompts) -> Iterator[Row | Reject]:
    """A file or hub id in one of `FORMATS`, with an optional `answer`."""
    path = local_path(source, recipe)
    find = images.finder(Path(source.images or Path(path).parent))
    found = records(path, source.hub_split, "data.sources", source.hub_config)
    name = source_name(source.path, source.hub_split)
    for number, raw in drawn(found, source.rows, recipe.seed):
        if isinstance(raw, Reject):
            yield raw
            continue
        source_id = f"{name}:{number}"
        try:
            row = FORMATS[source.format](renamed(raw, source.columns))
            prompt, completion = conversation(row, prompts)
            gold = gold_of(row)
        except ValueError as error:
            yield Reject(source_id, "schema", str(error), raw)
            continue
        out = Row(
            source_id,
            source.split or "train",
            prompt,
            completion,
            gold=gold,
            slice=str(row.get("slice") or "")[:80],
        )
        try:
            out.images = images.of_row(raw, find)
        except BadImage as error:
            yield Reject(source_id, error.reason, str(error), raw)
            continue
        if source.split is None:
            out.split = "" if out.images else split_of(out.question, source.val, source.test)
        yield out


def local_path(source: ChatSource, recipe: Recipe) -> str:
    """The source's path with the run folder in place of `{run}`. Raises UserError when `tunebook clean` has not made it yet."""
    path = source.path.replace("{run}", str(recipe.run_dir))
    if path.startswith(str(recipe.run_dir / "clean")) and not Path(path).exists():
        raise UserError(f"no {path}: run `{recipe.command('clean')}` first")
    return path


READERS: dict[str, Callable[..., Iterator[Row | Reject]]] = {
    "geometry": read_geometry,
    "mm_math": read_mm_math,
    **dict.fromkeys(FORMATS, read_chat),
}
