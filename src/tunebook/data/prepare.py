"""`tunebook prepare`: sources -> checked rows -> `data/{train,val,test}.parquet` and `quarantine.jsonl`.

uv run tunebook prepare --recipe smollm2-math
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.text import Text

from tunebook.checkers.check import Check
from tunebook.data import aside, benchmark_items, contamination, images, similarity, sources
from tunebook.data.checks import RowChecker
from tunebook.data.own_answers import Texts, own_answers, own_answers_stage, with_own_answers
from tunebook.data.rows import SPLITS, Reject, Row, rejected
from tunebook.data.storage import Quarantine, SplitFile, write_parquet
from tunebook.recipe.errors import UserError, shorten
from tunebook.recipe.overrides import switch
from tunebook.recipe.sections import ChatSource, MMMathSource, Recipe
from tunebook.runs import blocks
from tunebook.runs.bars import Bar
from tunebook.runs.blocks import Engine
from tunebook.runs.files import file_hash
from tunebook.runs.stage import Stage
from tunebook.runs.tables import Table

# Of every split, with the kind of each. `use` and `images` are there where rows have them.
COLUMNS = {
    "prompt": "messages",
    "completion": "messages",
    "source_id": "string",
    "gold": "string",
    "slice": "string",
    "group": "string",
    "difficulty": "string",
    "tokens": "int32",
}


def prepare(recipe: Recipe, force: bool = False, engine: Engine = "local") -> dict[str, Any]:
    """Read, check and write a recipe's data, unless it lies there already; returns the stage's record.

    Every row read ends in a split or in `quarantine.jsonl` with its reason. The files are the same, byte by
    byte, whatever the engine.

    Raises UserError when a source cannot be read, when no training row is left, and when too many are put
    aside (`data.max_aside`).
    """
    if not recipe.data.sources:
        raise UserError(
            f"the recipe {recipe.name} has no data.sources; it asks for {' and '.join(recipe.stages)}"
        )
    stage = data_stage(recipe)
    force = switch("force", force)
    if stage.await_rank_0() or stage.skip(force):
        return stage.result
    texts = own_answers(recipe)
    with stage.open(resume=False) as folder, Quarantine(folder / "quarantine.jsonl") as put_aside:
        end_tokens = aside.EndTokens()
        splits = _check(recipe, folder, texts, put_aside.add, end_tokens, engine)
        if not any(splits["train"].kept):
            raise UserError(f"no training row is left: {_why_none(put_aside)}")
        kept = sum(sum(split.kept) for split in splits.values())
        aside.check_share(put_aside.reasons, kept, recipe.data.max_aside, _why_none(put_aside))

        # Columns that few data sets need are left out of all others.
        columns = dict(COLUMNS)
        if any(source.use for source in recipe.data.sources):
            columns["use"] = "string"
        if recipe.check:
            columns["columns"] = "string"
        if any(split.has_chats for split in splits.values()):
            columns["chat"] = "string"
        has_images = any(split.has_images for split in splits.values())
        if has_images:
            columns["images"] = "files"

        written = {name: _write(split, folder / f"{name}.parquet", columns) for name, split in splits.items()}
        for key in ("rows", "slices", "fingerprints", "tokens"):
            stage.record[key] = {name: of_split[key] for name, of_split in written.items()}
        stage.record.update(aside.record(put_aside.reasons, put_aside.first, end_tokens))
        if has_images:
            stage.record["images"] = {name: of_split["images"] for name, of_split in written.items()}
    return stage.result


def data_stage(recipe: Recipe) -> Stage:
    """The stage that `prepare` fills; its key stands for the data in the stages that read it."""
    settings = {
        "data": recipe.data.model_dump(mode="json"),
        "seed": recipe.seed,
        "max_seq_length": recipe.model.max_seq_length,
        "tokenizer": [recipe.model.base, recipe.model.revision],
        **Check(recipe.check).settings,
    }
    return Stage(recipe, "data", settings, _inputs(recipe))


def summary(record: dict[str, Any]) -> Table:
    """Rows in and out, lengths and fingerprints of a `prepare` record, as a table."""
    table = Table("split", "rows", "tokens: median", "p95", "max", "fingerprint", title="data")
    for split in SPLITS:
        rows = record["rows"][split]
        lengths = ["-", "-", "-"]
        if rows:
            lengths = [str(record["tokens"][split][name]) for name in ("median", "p95", "max")]
        table.add_row(split, str(rows), *lengths, record["fingerprints"][split])

    put_aside = record["quarantined"]
    reasons = ", ".join(f"{count} {reason}" for reason, count in put_aside.items()) or "nothing"
    table.caption = Text(f"quarantined: {reasons}")
    if put_aside.get("too long"):
        # Of all rows that were read, whatever became of them.
        read = sum(record["rows"].values()) + sum(put_aside.values())
        table.caption.append(f"; {put_aside['too long'] / read:.1%} of all rows are too long")
    return table


def show(record: dict[str, Any]) -> None:
    """Print the summary table, and below it what became of all rows."""
    summary(record).show()
    # Not through rich, which would read `[/INST]` in a row as markup.
    for line in aside.account(record):
        print(line)


def quarantine(recipe: Recipe, rows: int = 20) -> Table:
    """The first rows that were put aside, with their reasons, as a table."""
    table = Table("row", "reason", "detail", title="quarantine")
    with (recipe.run_dir / "data" / "quarantine.jsonl").open(encoding="utf-8") as lines:
        for line in itertools.islice(lines, rows):
            reject = json.loads(line)
            # As text: markup in a row is its own.
            table.add_row(*(Text(reject[name]) for name in ("source_id", "reason", "detail")))
    return table if table.rows else Table("nothing was put aside")


class Checking:
    """What is done with a row by itself, where it may not be this process that does it.

    Given what a source yields, it returns the row with its tokens counted, or the reject.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        check = Check(recipe.check)
        self.checker = RowChecker(recipe.model, folder, recipe.data.refusals, recipe.data.train_on, check)

    def __call__(self, item: Row | Reject) -> Row | Reject:
        if isinstance(item, Reject):
            return item
        return self.checker.check(item) or item


class Comparing:
    """What can be said of a row of a split without the other rows of it, given as a numbered line of JSON.

    That is whether it holds a held-out question, and else the hashes by which duplicates are found.
    """

    def __init__(self, recipe: Recipe, name: str, held_out: Iterable[Row], sample: Iterable[Row]) -> None:
        data = recipe.data
        sample = list(sample)
        self.checks = [contamination.Contamination(data.contamination, held_out, others=sample).check]
        if name == "train":
            self.checks += [contamination.benchmarks(recipe).check, contamination.retention(recipe).check]
        self.duplicates = similarity.Duplicates(data.near_duplicate, sample, data.duplicates)

    def __call__(self, numbered: tuple[int, str]) -> Reject | similarity.Hashes | None:
        row = Row(**json.loads(numbered[1]))
        # The first check that rejects the row decides.
        for check in self.checks:
            reject = check(row)
            if reject:
                return reject
        return self.duplicates.hashes(row)


def _check(
    recipe: Recipe,
    folder: Path,
    texts: Texts,
    put_aside: Callable[[Reject], None],
    end_tokens: aside.EndTokens,
    engine: Engine,
) -> dict[str, SplitFile]:
    """The rows of each split that pass every check; the others are put aside."""
    splits = {name: SplitFile(folder / f".{name}.jsonl") for name in SPLITS}
    # Rows are read, checked and written one by one: memory stays flat however many they are.
    read = sources.read(recipe, folder / "images")
    items = with_own_answers(read, texts, recipe.data.own_answers is not None)
    checking = functools.partial(Checking, recipe, folder / "images")
    checked = blocks.each(items, checking, engine)
    for _, item in Bar(checked, desc="checking", unit="row"):
        if isinstance(item, Reject):
            put_aside(item)
        else:
            splits[item.split].add(item)
            end_tokens.add(item)

    # A held-out row wins over its copy in train, and one of test over its copy in val.
    held_out: list[SplitFile] = []
    for name in ("test", "val", "train"):
        rows = splits[name]
        held_out_rows: Iterable[Row] = _all_rows(held_out)
        sample: Iterable[Row] = rows.sample(similarity.SAMPLE)
        if engine == "ray":  # lists can be sent
            held_out_rows, sample = list(held_out_rows), list(sample)
        comparing = functools.partial(Comparing, recipe, name, held_out_rows, sample)
        compared = blocks.each(rows.lines(f"comparing {name}"), comparing, engine)
        _drop(rows, compared, similarity.Duplicates(recipe.data.near_duplicate), put_aside)
        held_out.append(rows)
    return splits


def _drop(
    rows: SplitFile,
    compared: Iterable[tuple[tuple[int, str], Reject | similarity.Hashes | None]],
    duplicates: similarity.Duplicates,
    put_aside: Callable[[Reject], None],
) -> None:
    """Put aside the rows that were rejected, and those that are like an earlier one of the split."""
    for (number, line), finding in compared:
        if isinstance(finding, Reject):
            reject = finding
        else:
            match = duplicates.match(finding)
            if match is None:
                continue
            reject = rejected(Row(**json.loads(line)), *match)
        rows.drop(number)
        put_aside(reject)


def _all_rows(splits: list[SplitFile]) -> Iterator[Row]:
    for split in splits:
        yield from split.rows()


def _write(split: SplitFile, path: Path, columns: dict[str, str]) -> dict[str, Any]:
    """Write a split's rows as Parquet; what the record says of it."""
    digest = hashlib.sha256()
    slices = Counter[str]()
    lengths = array("i")
    image_names = set[str]()

    # The lines are read once for all: hashed and counted while Parquet is written.
    def counted_rows() -> Iterator[dict[str, Any]]:
        for _, line in split.lines():
            digest.update(line[:-1].encode())
            row = json.loads(line)
            if row["slice"]:
                slices[row["slice"]] += 1
            lengths.append(row["tokens"])
            image_names.update(row.get("images", ()))
            yield row

    write_parquet(counted_rows(), path, **columns)
    split.remove()
    return {
        "rows": len(lengths),
        "slices": dict(slices),
        "fingerprints": digest.hexdigest()[:16],
        "tokens": _length_statistics(lengths),
        "images": len(image_names),
    }


def _length_statistics(tokens: Iterable[int]) -> dict[str, int]:
    ordered = sorted(tokens)
    if not ordered:
        return {}
    return {
        "total": sum(ordered),
        "median": ordered[len(ordered) // 2],
        "p95": ordered[math.ceil(0.95 * (len(ordered) - 1))],
        "max": ordered[-1],
    }


def _why_none(put_aside: Quarantine) -> str:
    """Of rows that were all put aside: the reasons, an example, what helps, and where all of them are."""
    counts = put_aside.reasons.most_common()
    if not counts:
        return "the sources are empty, or all of their rows went to val and test"
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts)
    commonest, _ = counts[0]
    example = put_aside.first[commonest]
    advice = aside.SETTINGS.get(commonest, "mend the rows")
    return (
        f"{reasons} (the first: {shorten(example.detail, 200)}); {advice}. "
        f"All of them are in {put_aside.path}"
    )


def _inputs(recipe: Recipe) -> dict[str, str]:
    """A hash of each local input, so that an edited one is noticed.

    Files count by their content, folders of images by the names and sizes in them.
    """
    data = recipe.data
    hashes = {}
    for name in (data.system_prompt, data.user_prompt, recipe.model.chat_template):
        if name:
            hashes[name] = file_hash(recipe.find_file(name))
    hashes |= sources.content_hashes(recipe)
    hashes |= Check(recipe.check).inputs
    if data.own_answers:
        hashes["own-answers"] = own_answers_stage(recipe).key
    for path in benchmark_items.benchmark_files(recipe):
        hashes[f"benchmark {path.name}"] = file_hash(path)

    # A folder of images may be too large to be read for this.
    for source in data.sources:
        folder = None
        if isinstance(source, MMMathSource):
            folder = source.path
        elif isinstance(source, ChatSource):
            folder = source.images
        if folder and source.find_path(folder).exists():
            hashes[folder] = images.listing(source.find_path(folder))
    return hashes
