"""A `pairs` record and some pairs, as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunebook.data.storage import read_parquet
from tunebook.pairs.shortcuts import marked
from tunebook.runs.stage import Stage


def summary(record: dict[str, Any]) -> Table:
    """Pairs by strategy, the pass-rate histogram, what was put aside and the two shortcut checks of a record, as a table."""
    table = Table("what", "value", title="pairs")
    table.add_row("pairs (train / val)", f"{record['rows']['train']} / {record['rows']['val']}")
    for strategy, n in record["strategies"].items():
        table.add_row(f"strategy {strategy}", str(n))
    for right, prompts in record.get("pass_counts", {}).items():
        table.add_row(f"prompts with {right} right samples", str(prompts))
    for what, key in (
        ("prompts", "prompts"),
        ("samples", "samples"),
        ("prompts asked for errors", "error_prompts"),
        ("answers asked to be wrong", "errors"),
        ("quarantined", "quarantined"),
    ):
        if record.get(key):
            table.add_row(what, ", ".join(f"{n} {name}" for name, n in record[key].items()))
    if margin := record.get("margin"):
        table.add_row(
            "score margin: min / median / max",
            f"{margin['min']:.2f} / {margin['median']:.2f} / {margin['max']:.2f}",
        )
    table.add_row(
        "mean tokens (chosen / rejected)",
        f"{record['tokens']['chosen']:.0f} / {record['tokens']['rejected']:.0f}",
    )
    trait, told = next(iter(record["format_only_accuracy"].items()))
    for by, rate, mend in (
        ("length", record["length_only_accuracy"], "lower pairs.max_length_ratio"),
        (f"format ({trait})", told, "look at the pairs: one side is written differently"),
    ):
        table.add_row(
            f"told apart by {by} alone",
            f"{rate:.0%} ({f'above 70%: {mend}' if rate > 0.7 else 'near 50% is healthy'})",
        )
    return table


def show(stage: Stage) -> None:
    """Print the summary of a finished stage and three of its pairs, with what rejected changes marked."""
    console = Console()
    console.print(summary(stage.result))
    for pair in read_parquet(stage.dir / "train.parquet").select(
        range(min(3, stage.result["rows"]["train"]))
    ):
        gold = "" if pair["gold"] is None else f" (answer: {pair['gold']})"
        table = Table("chosen", "rejected", title=pair["prompt"][-1]["content"] + gold, title_justify="left")
        table.add_row(
            Text(pair["chosen"][0]["content"]),
            Text.assemble(*((part, "bold red" if new else "") for part, new in marked(pair))),
        )
        console.print(table)
