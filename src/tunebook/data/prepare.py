"""`tunebook prepare`: sources -> checked rows -> `data/{train,val,test}.parquet` and `quarantine.jsonl`.

uv run tunebook prepare --recipe smollm2-math
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from tunebook import models
from tunebook.data import checks, images, sources
from tunebook.data.records import is_file
from tunebook.data.rows import SPLITS, Reject, Row, share
from tunebook.recipe import ChatSource, MMMathSource, Recipe, UserError, find_file, first_line
from tunebook.run import Stage, command, file_hash, intact

COLUMNS = {"prompt": "messages", "completion": "messages"} | dict.fromkeys(("source_id", "gold", "slice", "group", "difficulty"), "string")
COLUMNS["tokens"] = "int32"

Check = Callable[[Row], Reject | None]


def prepare(recipe: Recipe, force: bool = False) -> dict[str, Any]:
    """Read, check and write a recipe's data, unless it lies there already; returns the stage's record.

    Every row read ends in a split or in `quarantine.jsonl` with its reason.

    Raises UserError when a source cannot be read or no training row is left.
    """
    stage = data_stage(recipe)
    if stage.await_rank_0() or stage.skip(force):
        return stage.result
    with stage.open(resume=False) as folder:
        kept, rejects = _check(recipe, folder / "images")
        if not kept["train"]:
            reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejects).most_common())
            raise UserError(f"no training row is left ({reasons or 'the sources are empty'})")
        columns = COLUMNS | ({"images": "files"} if any(row.images for rows in kept.values() for row in rows) else {})
        for split, rows in kept.items():
            write_parquet([asdict(row) for row in rows], folder / f"{split}.parquet", **columns)
        write_quarantine(rejects, folder / "quarantine.jsonl")
        stage.record = {
            "rows": {split: len(rows) for split, rows in kept.items()},
            "quarantined": dict(Counter(r.reason for r in rejects)),
            "slices": {split: dict(Counter(r.slice for r in rows if r.slice)) for split, rows in kept.items()},
            "fingerprints": {split: _fingerprint(rows) for split, rows in kept.items()},
            "tokens": {split: _lengths(rows) for split, rows in kept.items()},
        }
        if "images" in columns:
            stage.record["images"] = {split: len({name for row in rows for name in row.images}) for split, rows in kept.items()}
    return stage.result


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
    share = record["quarantined"].get("too long", 0) / max(1, sum(record["rows"].values()) + sum(record["quarantined"].values()))
    table.caption = f"quarantined: {quarantined}; {share:.1%} of all rows would have been cut"
    return table


def quarantine(recipe: Recipe, rows: int = 20) -> Table:
    """The first rows that were put aside, with their reasons, as a table."""
    table = Table("row", "reason", "detail", title="quarantine")
    with (recipe.run_dir / "data" / "quarantine.jsonl").open(encoding="utf-8") as lines:
        for line in itertools.islice(lines, rows):
            reject = json.loads(line)
            table.add_row(reject["source_id"], reject["reason"], reject["detail"])
    return table


def load(recipe: Recipe, split: str) -> Any:
    """A prepared split as a `datasets.Dataset`. Raises UserError that names the command when it is not there."""
    path = recipe.run_dir / "data" / f"{split}.parquet"
    if not path.exists():
        raise UserError(f"no {path}: run `{command(recipe, 'data')}` first")
    return read_rows(recipe, path)


def read_rows(recipe: Recipe, path: Path) -> Any:
    """A Parquet file of the run as a `datasets.Dataset`; `images`, where rows have some, are whole paths.

    Raises UserError when the file is damaged.
    """
    rows = read_parquet(intact(path))
    if "images" not in rows.column_names:
        return rows
    import datasets

    places = [[str(recipe.run_dir / "data" / "images" / name) for name in names] for names in rows["images"]]
    return rows.remove_columns("images").add_column("images", places, feature=datasets.List(datasets.Value("string")))


def training_rows(recipe: Recipe, stage: Literal["sft", "pairs"]) -> Any:
    """The train rows of one of the two, by `data.for_pairs` and a hash of the prompt (and its images); all of them when nothing is
    kept apart."""
    rows, kept = load(recipe, "train"), recipe.data.for_pairs
    if not kept:
        return rows
    names = ("".join(Path(path).name for path in r.get("images") or []) for r in rows)
    shares = (share(f"for pairs/{p[-1]['content']}{name}") for p, name in zip(rows["prompt"], names, strict=True))
    return rows.select([i for i, at in enumerate(shares) if (at < kept) == (stage == "pairs")])


def read_parquet(path: Path) -> Any:
    """A Parquet file as a `datasets.Dataset`, empty ones included, without a copy in the Hugging Face cache."""
    import datasets
    import pyarrow.parquet

    return datasets.Dataset(pyarrow.parquet.read_table(path, memory_map=True))


def write_parquet(rows: list[dict[str, Any]], path: Path, **columns: str) -> None:
    """Rows as Parquet; `columns` maps each name to `messages`, `files` or a `datasets` type such as `string`."""
    import datasets

    text = datasets.Value("string")
    kinds = {"messages": datasets.List({"role": text, "content": text}), "files": datasets.List(text)}
    features = datasets.Features({name: kinds.get(kind) or datasets.Value(kind) for name, kind in columns.items()})
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in columns}, features=features).to_parquet(path)
    datasets.enable_progress_bars()


def write_quarantine(rejects: list[Reject], path: Path) -> None:
    """What is not trained on, a JSON line each with the reason."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(asdict(reject), ensure_ascii=True, default=str) + "\n" for reject in rejects)


def tokenizer(recipe: Recipe, images: bool = False) -> Any:
    """The base model's tokenizer (or, for `images`, its processor), without loading the model or importing Unsloth.

    Raises UserError when there is no such model, or when it sees no images.
    """
    models.set_environment()
    from transformers import AutoProcessor, AutoTokenizer

    try:
        tok = (AutoProcessor if images else AutoTokenizer).from_pretrained(models.resolve(recipe.model.base), revision=recipe.model.revision)
    except (OSError, ValueError) as error:
        raise UserError(f"model.base: no model at {recipe.model.base!r} ({first_line(error)})") from None
    models.fit_tokenizer(tok, recipe.model)
    return tok


def _check(recipe: Recipe, folder: Path) -> tuple[dict[str, list[Row]], list[Reject]]:
    """The rows of each split that pass every check, and the rejected ones. A held-out row wins over its copy in train."""
    count = _token_counter(recipe, folder)
    sorted_out: dict[str, list[Row]] = {split: [] for split in SPLITS}
    rejects: list[Reject] = []

    def check_length(row: Row) -> Reject | None:
        row.tokens = count(row)
        return checks.check_length(row, recipe.model.max_seq_length)

    def keep(rows: Iterable[Row | Reject], *checked: Check) -> None:
        for row in checks.accepted(rows, list(checked)):
            if isinstance(row, Row):
                sorted_out[row.split].append(row)
            else:
                rejects.append(row)

    keep(tqdm(sources.read(recipe, folder), desc="checking", unit="row", mininterval=1), checks.check_content, check_length)
    held_out: list[Row] = []
    benchmarks = checks.benchmarks(recipe)
    for split in ("test", "val", "train"):
        rows, sorted_out[split] = sorted_out[split], []
        contamination = checks.Contamination(recipe.data.contamination, held_out)
        keep(rows, contamination.check, *([benchmarks.check] if split == "train" else []), checks.Duplicates(recipe.data.near_duplicate).check)
        held_out += sorted_out[split]
    return sorted_out, rejects


def _token_counter(recipe: Recipe, folder: Path) -> Callable[[Row], int]:
    """Counts a row's tokens as the trainer sees them, those of its images too."""
    tok = tokenizer(recipe)
    processors: list[images.TokenCounter] = []

    def count(row: Row) -> int:
        messages: list[Any] = row.prompt + row.completion
        if not row.images:
            return len(tok.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])
        if not processors:
            processor = tokenizer(recipe, images=True)
            if not hasattr(processor, "image_processor"):
                raise UserError(f"the data have images, but {recipe.model.base} sees none: choose another model.base")
            processors.append(images.TokenCounter(processor))
        text = images.render(processors[0].processor, messages, len(row.images), answer_next=False)
        return len(tok(text, add_special_tokens=False)["input_ids"]) + processors[0].added(folder / name for name in row.images)

    return count


def _lengths(rows: list[Row]) -> dict[str, int]:
    ordered = sorted(row.tokens for row in rows)
    if not ordered:
        return {}
    return {"total": sum(ordered), "median": ordered[len(ordered) // 2], "p95": ordered[int(0.95 * (len(ordered) - 1))], "max": ordered[-1]}


def _fingerprint(rows: list[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        known = {k: v for k, v in asdict(row).items() if k != "images" or v}  # text alone has the fingerprint it always had
        digest.update(json.dumps(known, sort_keys=True).encode())
    return digest.hexdigest()[:16]


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
    files = {name: name for name in (data.system_prompt, data.user_prompt, recipe.model.chat_template) if name}
    files |= {s.path: sources.local_path(s, recipe) for s in data.sources if isinstance(s, ChatSource) and is_file(s.path)}
    found = {name: find_file(path) for name, path in files.items()} | {f"benchmark {p.name}": p for p in sources.benchmark_files(recipe)}
    folders = [s.path if isinstance(s, MMMathSource) else s.images for s in data.sources if isinstance(s, MMMathSource | ChatSource)]
    return {name: file_hash(path) for name, path in found.items()} | {f: images.listing(Path(f)) for f in folders if f and Path(f).exists()}


def show(record: dict[str, Any]) -> None:
    """Print the summary table."""
    Console().print(summary(record))
