"""Rows on disk: while they are checked, as the Parquet files of a split, and in the quarantine."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from tunebook.data.rows import Reject, Row, hash_fraction, images_of
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe
from tunebook.runs.bars import Bar
from tunebook.runs.files import intact

# Rows of a row group in Parquet.
ROW_GROUP = 10_000


def load(recipe: Recipe, split: str) -> Any:
    """A prepared split as a `datasets.Dataset`. Raises UserError that names the command to run first."""
    path = recipe.run_dir / "data" / f"{split}.parquet"
    if not path.exists():
        raise UserError(f"no {path}: run `{recipe.command('prepare')}` first")
    return read_rows(recipe, path)


def read_rows(recipe: Recipe, path: Path) -> Any:
    """A Parquet file of the run as a `datasets.Dataset`; `images`, where rows have some, are whole paths.

    Raises UserError when the file is damaged.
    """
    rows = read_parquet(intact(path))
    if "images" not in rows.column_names:
        return rows
    import datasets

    # Files hold names alone, so that a run folder can be moved.
    of_data = recipe.run_dir / "data" / "images"
    beside = path.parent / "images"  # an existing set of pairs brings its own
    paths = []
    for names in rows["images"]:
        folders = [beside if (beside / name).exists() else of_data for name in names]
        paths.append([str(folder / name) for folder, name in zip(folders, names, strict=True)])
    files = datasets.List(datasets.Value("string"))
    return rows.remove_columns("images").add_column("images", paths, feature=files)


def training_rows(recipe: Recipe, stage: Literal["sft", "pairs"]) -> Any:
    """The train rows of one of the two stages; all of them when nothing is kept apart.

    Kept apart are rows by the `use` of their source, and a share (`data.for_pairs`) by a hash of their prompt
    and its images. Raises UserError when no row is left.
    """
    rows = load(recipe, "train")
    if "use" in rows.column_names:
        rows = rows.select([i for i, use in enumerate(rows["use"]) if use in (stage, None)])
        if not len(rows):
            raise UserError(f"no train row is for {stage}: every source has another `use`")
    for_pairs = recipe.data.for_pairs
    if not for_pairs:
        return rows
    chosen = []
    # By a hash, so that no row changes sides when others are added.
    for i, row in enumerate(rows):
        names = "".join(Path(path).name for path in images_of(row))
        fraction = hash_fraction(f"for pairs/{row['prompt'][-1]['content']}{names}")
        if (fraction < for_pairs) == (stage == "pairs"):
            chosen.append(i)
    return rows.select(chosen)


def read_parquet(path: Path) -> Any:
    """A Parquet file as a `datasets.Dataset`, also an empty one, without a copy in Hugging Face's cache."""
    import datasets
    import pyarrow.parquet

    return datasets.Dataset(pyarrow.parquet.read_table(path, memory_map=True))


def write_parquet(rows: Iterable[dict[str, Any]], path: Path, **columns: str) -> None:
    """Rows as Parquet, some thousands at a time.

    Args:
        columns: of each name the kind: `messages`, `files` or a type of Arrow such as `string`.
    """
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    kinds = {
        "messages": pyarrow.list_(pyarrow.struct({"role": text, "content": text})),
        "files": pyarrow.list_(text),
    }
    # With a schema, because a column may be empty in a whole group, and then has no type of its own.
    fields = {name: kinds.get(kind) or pyarrow.type_for_alias(kind) for name, kind in columns.items()}
    schema = pyarrow.schema(fields)
    rows = iter(rows)
    with pyarrow.parquet.ParquetWriter(path, schema) as out:
        while group := list(itertools.islice(rows, ROW_GROUP)):
            out.write_table(pyarrow.Table.from_pylist(group, schema))


class SplitFile:
    """The rows of a split on disk while they are checked: a JSON line each, whose hash is the fingerprint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Of each row whether it is kept: a byte each, where a list would take eight.
        self.kept = bytearray()
        self.has_images = False
        self.has_chats = False
        self.out = path.open("w", encoding="ascii")

    def add(self, row: Row) -> None:
        """Write a row at the end."""
        values = dict(vars(row))
        # Rows that have none keep the fingerprint they had before there were such fields.
        for name in ("images", "use", "chat", "columns"):
            if not values[name]:
                del values[name]
        self.out.write(json.dumps(values, sort_keys=True) + "\n")
        self.kept.append(True)
        self.has_images = self.has_images or bool(row.images)
        self.has_chats = self.has_chats or bool(row.chat)

    def drop(self, number: int) -> None:
        """Keep a row no longer."""
        self.kept[number] = False

    def lines(self, title: str = "") -> Iterator[tuple[int, str]]:
        """The rows that are kept, numbered, as lines of JSON; with a title their progress is shown."""
        self.out.flush()  # the last rows may still be in its buffer
        count = sum(self.kept)
        hidden = not title or not count
        with (
            self.path.open(encoding="ascii") as lines,
            Bar(desc=title, unit="row", total=count, disable=hidden) as progress,
        ):
            for number, line in enumerate(lines):
                if self.kept[number]:
                    yield number, line
                    progress.update()

    def rows(self) -> Iterator[Row]:
        """The rows that are kept."""
        for _, line in self.lines():
            yield Row(**json.loads(line))

    def sample(self, size: int) -> Iterator[Row]:
        """About so many of the rows, taken from all over."""
        step = max(1, sum(self.kept) // size)
        for _, line in itertools.islice(self.lines(), 0, None, step):
            yield Row(**json.loads(line))

    def remove(self) -> None:
        """Delete the file."""
        self.out.close()
        self.path.unlink()


class Quarantine:
    """What is not trained on: a JSON line each with the reason, counted by it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons = Counter[str]()
        # The first reject of each reason, as an example.
        self.first: dict[str, Reject] = {}
        self.out = path.open("w", encoding="utf-8")

    def add(self, reject: Reject) -> None:
        """Put a row aside."""
        self.reasons[reject.reason] += 1
        self.first.setdefault(reject.reason, reject)
        # Raw rows of Parquet may hold dates or bytes, those of JSON half a surrogate pair.
        self.out.write(json.dumps(vars(reject), ensure_ascii=True, default=str) + "\n")

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *args: object) -> None:
        self.out.close()


def write_quarantine(rejects: list[Reject], path: Path) -> None:
    """What is not trained on, a JSON line each with the reason."""
    with Quarantine(path) as quarantine:
        for reject in rejects:
            quarantine.add(reject)
