"""Rows on disk: Parquet files of a split, and the quarantine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from tunebook.data.rows import Reject, images_of, share
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import intact

WRITTEN = 10_000
"""Rows of a row group in Parquet."""


def load(recipe: Recipe, split: str) -> Any:
    """A prepared split as a `datasets.Dataset`. Raises UserError that names the command when it is not there."""
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

    folders = (
        path.parent / "images",
        recipe.run_dir / "data" / "images",
    )  # an existing set of pairs brings its own
    places = [
        [str(next((f / name for f in folders if (f / name).exists()), folders[1] / name)) for name in names]
        for names in rows["images"]
    ]
    return rows.remove_columns("images").add_column(
        "images", places, feature=datasets.List(datasets.Value("string"))
    )


def training_rows(recipe: Recipe, stage: Literal["sft", "pairs"]) -> Any:
    """The train rows of one of the two, by the `use` of their source, and by `data.for_pairs` and a hash of the prompt (and its images);
    all of them when nothing is kept apart. Raises UserError when none is left."""
    rows, kept = load(recipe, "train"), recipe.data.for_pairs
    if "use" in rows.column_names:
        rows = rows.select([i for i, use in enumerate(rows["use"]) if use in (stage, None)])
        if not len(rows):
            raise UserError(f"no train row is for {stage}: every source has another `use`")
    if not kept:
        return rows
    names = ("".join(Path(path).name for path in images_of(r)) for r in rows)
    shares = (
        share(f"for pairs/{p[-1]['content']}{name}") for p, name in zip(rows["prompt"], names, strict=True)
    )
    return rows.select([i for i, at in enumerate(shares) if (at < kept) == (stage == "pairs")])


def read_parquet(path: Path) -> Any:
    """A Parquet file as a `datasets.Dataset`, empty ones included, without a copy in the Hugging Face cache."""
    import datasets
    import pyarrow.parquet

    return datasets.Dataset(pyarrow.parquet.read_table(path, memory_map=True))


def write_parquet(rows: Iterable[dict[str, Any]], path: Path, **columns: str) -> None:
    """Rows as Parquet, some thousands at a time; `columns` maps each name to `messages`, `files` or a type of Arrow such as `string`."""
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    kinds = {
        "messages": pyarrow.list_(pyarrow.struct({"role": text, "content": text})),
        "files": pyarrow.list_(text),
    }
    schema = pyarrow.schema(
        {name: kinds.get(kind) or pyarrow.type_for_alias(kind) for name, kind in columns.items()}
    )
    rows = iter(rows)
    with pyarrow.parquet.ParquetWriter(path, schema) as out:
        while part := list(itertools.islice(rows, WRITTEN)):
            out.write_table(pyarrow.Table.from_pylist(part, schema))


def write_quarantine(rejects: list[Reject], path: Path) -> None:
    """What is not trained on, a JSON line each with the reason."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(map(quarantine_line, rejects))


def quarantine_line(reject: Reject) -> str:
    """A reject as it stands in `quarantine.jsonl`."""
    return json.dumps(vars(reject), ensure_ascii=True, default=str) + "\n"
