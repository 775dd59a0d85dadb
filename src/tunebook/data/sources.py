"""Where rows come from: one function per format, each yielding `Row`s and, for what cannot be one, `Reject`s.

A row is conversational, as TRL wants it: `prompt` and `completion` are lists of messages. Raw rows of every
format first become `messages`, or `prompt` + `completion` (`FORMATS`), and then a row (`conversation`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm.auto import tqdm

from school_geometry import problems
from tunebook.checkers.check import other_columns
from tunebook.data import files, images, tools
from tunebook.data.fields import MissingColumn, images_in, lower_cased
from tunebook.data.formats import conversation, gold_of, prompt_alone
from tunebook.data.mm_math import read_mm_math
from tunebook.data.prompts import Prompts
from tunebook.data.recognise import FORMATS, Form, recognised, why_missing
from tunebook.data.records import all_records, drawn, renamed
from tunebook.data.rows import Raw, Reject, Row, Unusable, split_of
from tunebook.models.image_input import BadImage
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import ChatSource, GeometrySource, InstructionsSource, Recipe
from writing_tasks.tasks import tasks, written_tasks

# Characters of a slice's name, which stands in tables.
MAX_SLICE = 80


def read(recipe: Recipe, folder: Path) -> Iterator[Row | Reject]:
    """All sources of a recipe, one after the other, in the same order every time.

    Args:
        folder: where their images are written, once they are checked.
    """
    prompts = Prompts(recipe)
    for source in recipe.data.sources:
        reader: Callable[..., Iterator[Row | Reject]] = READERS[source.format]
        rows = images.store_all(reader(source, recipe, prompts), folder, recipe.data.max_image_size)
        # Only now is a row's split known, and with it whether it is trained on.
        for row in images.assign_splits(rows, source.val, source.test):
            if isinstance(row, Row) and row.split == "train":
                row.use = source.use
            yield row


def read_geometry(source: GeometrySource, recipe: Recipe, prompts: Prompts) -> Iterator[Row]:
    """The project's own practice problems."""
    for split, number in (("train", source.train), ("val", source.val), ("test", source.test)):
        try:
            of_split = list(problems.problems_of_split(split, number, recipe.seed, source.wordings))
        except ValueError as error:
            raise UserError(str(error)) from None
        for problem in of_split:
            yield Row(
                source_id=f"geometry/{problem.id}/{problem.wording}",
                split=split,
                prompt=prompts.ask(problem.question),
                completion=[{"role": "assistant", "content": problem.solution}],
                gold=problem.answer,
                slice=problem.slice,
                group=problem.family,
                difficulty=problem.difficulty,
            )


def read_instructions(source: InstructionsSource, recipe: Recipe, prompts: Prompts) -> Iterator[Row]:
    """Texts to write under instructions; few have one that is written."""
    train = "pairs" if source.use == "pairs" else "sft"
    numbers = {train: source.train, "val": source.val, "test": source.test}
    drawn_tasks = []
    try:
        for split, number in numbers.items():
            drawn_tasks += [(split, task) for task in tasks(split, number, recipe.seed)]
    except ValueError as error:
        raise UserError(f"instructions: {error}") from None
    if source.written:
        drawn_tasks += [(train, task) for task in written_tasks()]
    for split, task in drawn_tasks:
        completion = [{"role": "assistant", "content": task.written}] if task.written else []
        yield Row(
            source_id=f"instructions/{task.id}",
            split="train" if split == train else split,
            prompt=prompts.ask(task.prompt),
            completion=completion,
            slice=task.slice,
            group="+".join(task.kinds),
            columns=json.dumps({"instructions": task.instructions}),
        )


def read_chat(source: ChatSource, recipe: Recipe, prompts: Prompts) -> Iterator[Row | Reject]:
    """Files or a hub id in one of `FORMATS`, or whatever form is recognised, with an optional `answer`."""
    path = local_path(source, recipe)
    image_folder = source.find_path(source.images) if source.images else files.image_folder(path)
    find_image = images.finder(image_folder)
    named = all_records(path, source.hub_split, "data.sources", source.hub_config)
    forms: set[Form] = set()
    for source_id, raw in drawn(named, source.rows, recipe.seed):
        if isinstance(raw, Reject):
            yield raw
            continue
        try:
            fields = _fields(raw, source, forms)
            chat = tools.conversation(fields, prompts.with_system)
            read_texts = prompt_alone if source.format == "prompts" else conversation
            prompt, completion = tools.as_texts(chat) if chat else read_texts(fields, prompts)
            row = Row(source_id, source.split or "train", prompt, completion, gold=gold_of(fields))
            if chat:
                row.chat = tools.dumped(chat)
            if recipe.check:
                row.columns = other_columns(renamed(raw, source.columns))
            row.slice = str(fields.get("slice") or "")[:MAX_SLICE]
            row.images = images.of_row(fields, find_image)
        except MissingColumn as error:
            yield Reject(source_id, *why_missing(error.name, raw, source.columns), raw)
            continue
        except (BadImage, Unusable) as error:
            yield Reject(source_id, error.reason, str(error), raw)
            continue
        if source.split is None:
            # A row with images is given its split with the rows that share one.
            row.split = "" if row.images else split_of(row.question, source.val, source.test)
        yield row


def local_path(source: ChatSource, recipe: Recipe) -> str:
    """The source's path, with the run folder in place of `{run}`, where it lies on this machine.

    Raises UserError when there is no such file, or `tunebook clean` has not made it yet.
    """
    path = source.path.replace("{run}", str(recipe.run_dir))
    if path.startswith(str(recipe.run_dir / "clean")) and not Path(path).exists():
        raise UserError(f"no {path}: run `{recipe.command('clean')}` first")
    return files.located(source, path)


def content_hashes(recipe: Recipe) -> dict[str, str]:
    """A hash of each file of rows, so that an edited one is noticed."""
    hashes = {}
    for source in recipe.data.sources:
        if isinstance(source, ChatSource):
            content = files.content_hash(local_path(source, recipe), "data.sources")
            # A hub id has no content that could be read here.
            if content:
                hashes[source.path] = content
    return hashes


def _fields(raw: Raw, source: ChatSource, forms: set[Form]) -> Raw:
    """A raw row as `messages`, or `prompt` and `completion`. Raises Unusable that names what cannot be read.

    Args:
        forms: Those recognised so far; each is said once.
    """
    row = renamed(raw, source.columns)
    if source.format:
        fields = FORMATS[source.format](lower_cased(row))
    else:
        form = recognised(row)
        if form not in forms:
            forms.add(form)
            tqdm.write(f"{source.path}: read as {form.name}, by the columns {', '.join(form.columns)}")
        fields = form.function(lower_cased(row))
    parts = images_in(fields.get("messages"))
    return {**fields, "images": parts} if parts else fields


READERS: dict[str | None, Callable[..., Iterator[Row | Reject]]] = {
    "geometry": read_geometry,
    "instructions": read_instructions,
    "mm_math": read_mm_math,
    **dict.fromkeys(FORMATS, read_chat),
    None: read_chat,
}
