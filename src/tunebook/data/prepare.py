"""`tunebook prepare`: sources -> checked rows -> `data/{train,val,test}.parquet` and `quarantine.jsonl`.

uv run tunebook prepare --recipe smollm2-math
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from tunebook.data import benchmark_items, images, similarity, sources
from tunebook.data.records import is_file
from tunebook.data.rows import SPLITS, Reject, Row
from tunebook.data.storage import quarantine_line, write_parquet
from tunebook.data.tokens import count_and_check
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import find_file
from tunebook.recipe.sections import ChatSource, MMMathSource, Recipe
from tunebook.runs.files import file_hash
from tunebook.runs.stage import Stage

COLUMNS = {"prompt": "messages", "completion": "messages"} | dict.fromkeys(
    ("source_id", "gold", "slice", "group", "difficulty"), "string"
)


COLUMNS["tokens"] = "int32"


def prepare(recipe: Recipe, force: bool = False) -> dict[str, Any]:
    """Read, check and write a recipe's data, unless it lies there already; returns the stage's record.

    Every row read ends in a split or in `quarantine.jsonl` with its reason.

    Raises UserError when a source cannot be read or no training row is left.
    """
    stage = data_stage(recipe)
    if stage.await_rank_0() or stage.skip(force):
        return stage.result
    with stage.open(resume=False) as folder, (folder / "quarantine.jsonl").open("w", encoding="utf-8") as out:
        reasons, first = Counter[str](), dict[str, Reject]()

        def put_aside(reject: Reject) -> None:
            reasons[reject.reason] += 1
            first.setdefault(reject.reason, reject)
            out.write(quarantine_line(reject))

        splits = _check(recipe, folder, put_aside)
        if not any(splits["train"].kept):
            raise UserError(f"no training row is left: {_why_none(reasons, first, folder)}")
        columns = COLUMNS | ({"use": "string"} if any(source.use for source in recipe.data.sources) else {})
        columns |= {"images": "files"} if any(rows.images for rows in splits.values()) else {}
        written = {
            split: _write(rows, folder / f"{split}.parquet", columns) for split, rows in splits.items()
        }
        stage.record = {
            key: {split: found[key] for split, found in written.items()}
            for key in ("rows", "slices", "fingerprints", "tokens")
        }
        stage.record["quarantined"] = dict(reasons)
        if "images" in columns:
            stage.record["images"] = {split: found["images"] for split, found in written.items()}
    return stage.result


MENDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "schema": lambda row: (
        f"its columns are {', '.join(row)}: name them in `columns`, for example {{prompt: {next(iter(row))}}}"
    ),
    "too long": lambda row: "raise model.max_seq_length",
}
"""What helps against the reasons for which all rows of a source are put aside at once."""


def _why_none(reasons: Counter[str], first: dict[str, Reject], folder: Path) -> str:
    """Of rows that were all put aside: the commonest reason, an example, what helps, and where the others are."""
    if not reasons:
        return "the sources are empty, or all of their rows went to val and test"
    example = first[reasons.most_common(1)[0][0]]
    counts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    mend = f"; {MENDS[example.reason](example.row)}" if example.reason in MENDS and example.row else ""
    return f"{counts} (the first: {example.detail}){mend}. All of them are in {folder / 'quarantine.jsonl'}"


def data_stage(recipe: Recipe) -> Stage:
    """The stage that `prepare` fills; its key stands for the data in the stages that read it."""
    return Stage(recipe, "data", _settings(recipe), _inputs(recipe))


def summary(record: dict[str, Any]) -> Table:
    """Rows in and out, lengths and fingerprints of a `prepare` record, as a table."""
    tokens = record["tokens"]
    table = Table("split", "rows", "tokens: median", "p95", "max", "fingerprint", title="data")
    for split in SPLITS:
        rows = record["rows"][split]
        cells = [str(tokens[split][k]) if rows else "-" for k in ("median", "p95", "max")]
        table.add_row(split, str(rows), *cells, record["fingerprints"][split])
    quarantined = ", ".join(f"{n} {reason}" for reason, n in record["quarantined"].items()) or "nothing"
    share = record["quarantined"].get("too long", 0) / max(
        1, sum(record["rows"].values()) + sum(record["quarantined"].values())
    )
    table.caption = f"quarantined: {quarantined}; {share:.1%} of all rows would have been cut"
    return table


def quarantine(recipe: Recipe, rows: int = 20) -> Table:
    """The first rows that were put aside, with their reasons, as a table."""
    table = Table("row", "reason", "detail", title="quarantine")
    with (recipe.run_dir / "data" / "quarantine.jsonl").open(encoding="utf-8") as lines:
        for line in itertools.islice(lines, rows):
            reject = json.loads(line)
            table.add_row(reject["source_id"], reject["reason"], reject["detail"])
    return table if table.rows else Table("nothing was put aside")


class _Rows:
    """The rows of a split, on disk while they are checked: a JSON line each, whose hash is the fingerprint."""

    def __init__(self, path: Path) -> None:
        self.path, self.kept, self.images = path, bytearray(), False
        self.out = path.open("w", encoding="ascii")

    def add(self, row: Row) -> None:
        values = {
            k: v for k, v in vars(row).items() if v or k not in ("images", "use")
        }  # other rows keep the fingerprint they always had
        self.out.write(json.dumps(values, sort_keys=True) + "\n")
        self.kept.append(True)
        self.images = self.images or bool(row.images)

    def lines(self) -> Iterator[tuple[int, str]]:
        """The rows that are kept, numbered."""
        self.out.flush()
        with self.path.open(encoding="ascii") as lines:
            yield from ((i, line) for i, line in enumerate(lines) if self.kept[i])

    def sample(self, size: int) -> Iterator[Row]:
        """About so many of the rows, taken from all over."""
        step = max(1, sum(self.kept) // size)
        for _, line in itertools.islice(self.lines(), 0, None, step):
            yield Row(**json.loads(line))

    def rows(self, what: str = "") -> Iterator[tuple[int, Row]]:
        """The same; `what` is done with them is shown."""
        for i, line in tqdm(
            self.lines(),
            desc=what,
            unit="row",
            total=sum(self.kept),
            mininterval=1,
            disable=not (what and any(self.kept)),
        ):
            yield i, Row(**json.loads(line))


def _check(recipe: Recipe, folder: Path, put_aside: Callable[[Reject], None]) -> dict[str, _Rows]:
    """The rows of each split that pass every check; the others are put aside."""
    splits = {split: _Rows(folder / f".{split}.jsonl") for split in SPLITS}
    items = count_and_check(sources.read(recipe, folder / "images"), recipe.model, folder / "images")
    for item in tqdm(items, desc="checking", unit="row", mininterval=1):
        if isinstance(item, Row):
            splits[item.split].add(item)
        else:
            put_aside(item)

    # A held-out row wins over its copy in train, and one of test over its copy in val.
    held_out: list[_Rows] = []
    for split in ("test", "val", "train"):
        rows = splits[split]
        unseen = [similarity.Contamination(recipe.data.contamination, _all_rows(held_out))]
        if split == "train":
            unseen.append(similarity.benchmarks(recipe))
        duplicates = similarity.Duplicates(recipe.data.near_duplicate, rows.sample(similarity.SAMPLE))
        _drop(rows, [*(seen.check for seen in unseen), duplicates.check], put_aside, f"comparing {split}")
        held_out.append(rows)
    return splits


def _all_rows(splits: list[_Rows]) -> Iterator[Row]:
    for split in splits:
        for _, row in split.rows():
            yield row


def _drop(
    rows: _Rows, checks: list[Callable[[Row], Reject | None]], put_aside: Callable[[Reject], None], title: str
) -> None:
    """Put aside the rows that a check rejects; the first that does decides."""
    for number, row in rows.rows(title):
        for check in checks:
            reject = check(row)
            if reject:
                rows.kept[number] = False
                put_aside(reject)
                break


def _write(rows: _Rows, path: Path, columns: dict[str, str]) -> dict[str, Any]:
    """Write a split's rows; what the record says of it."""
    digest, slices, lengths, seen = hashlib.sha256(), Counter[str](), array("i"), set[str]()

    def written() -> Iterator[dict[str, Any]]:
        for _, line in rows.lines():
            digest.update(line[:-1].encode())
            row = json.loads(line)
            slices.update([row["slice"]] if row["slice"] else [])
            lengths.append(row["tokens"])
            seen.update(row.get("images", ()))
            yield row

    write_parquet(written(), path, **columns)
    rows.out.close()
    rows.path.unlink()
    return {
        "rows": len(lengths),
        "slices": dict(slices),
        "fingerprints": digest.hexdigest()[:16],
        "tokens": _lengths(lengths),
        "images": len(seen),
    }


def _lengths(tokens: Sequence[int]) -> dict[str, int]:
    ordered = np.sort(tokens)
    if not len(ordered):
        return {}
    values = {
        "total": ordered.sum(),
        "median": ordered[len(ordered) // 2],
        "p95": ordered[int(0.95 * (len(ordered) - 1))],
        "max": ordered[-1],
    }
    return {name: int(value) for name, value in values.items()}


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "data": recipe.data.model_dump(mode="json"),
        "seed": recipe.seed,
        "max_seq_length": recipe.model.max_seq_length,
        "tokenizer": [recipe.model.base, recipe.model.revision],
    }


def _inputs(recipe: Recipe) -> dict[str, str]:
    """Local files by content, so that an edited file is noticed; folders of images by the names and sizes in them."""
    data = recipe.data
    files = {
        name: name for name in (data.system_prompt, data.user_prompt, recipe.model.chat_template) if name
    }
    files |= {
        s.path: sources.local_path(s, recipe)
        for s in data.sources
        if isinstance(s, ChatSource) and is_file(s.path)
    }
    found = {name: find_file(path) for name, path in files.items()} | {
        f"benchmark {p.name}": p for p in benchmark_items.benchmark_files(recipe)
    }
    folders = [
        s.path if isinstance(s, MMMathSource) else s.images
        for s in data.sources
        if isinstance(s, MMMathSource | ChatSource)
    ]
    return {name: file_hash(path) for name, path in found.items()} | {
        f: images.listing(Path(f)) for f in folders if f and Path(f).exists()
    }


def show(record: dict[str, Any]) -> None:
    """Print the summary table."""
    Console().print(summary(record))
