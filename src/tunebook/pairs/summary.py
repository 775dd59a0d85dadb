"""A `pairs` record and some pairs, as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from tunebook.data import aside
from tunebook.data.storage import read_parquet
from tunebook.pairs.shortcuts import marked
from tunebook.runs.stage import Stage
from tunebook.runs.tables import Table

COUNTS = {
    "prompts": "prompts",
    "samples": "samples",
    "error_prompts": "prompts asked for errors",
    "errors": "answers asked to be wrong",
    "quarantined": "quarantined",
}
"""What a record counts by kind, as the table calls it."""


def summary(record: dict[str, Any]) -> Table:
    """The record of a `pairs` stage: pairs by strategy, outcomes of samples, the two shortcut checks."""
    table = Table("what", "value", title="pairs")
    table.add_row("pairs (train / val)", f"{record['rows']['train']} / {record['rows']['val']}")
    for strategy, n in record["strategies"].items():
        table.add_row(f"strategy {strategy}", str(n))
    for right, prompts in record.get("pass_counts", {}).items():
        table.add_row(f"prompts with {right} right samples", str(prompts))
    for key, name in COUNTS.items():
        if counts := record.get(key):
            table.add_row(name, ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    if margin := record.get("margin"):
        values = f"{margin['min']:.2f} / {margin['median']:.2f} / {margin['max']:.2f}"
        table.add_row("score margin: min / median / max", values)
    tokens = record["tokens"]
    table.add_row("mean tokens (chosen / rejected)", f"{tokens['chosen']:.0f} / {tokens['rejected']:.0f}")
    length = _rated(record["length_only_accuracy"], "lower pairs.max_length_ratio")
    table.add_row("told apart by length alone", length)
    trait, accuracy = next(iter(record["format_only_accuracy"].items()))
    layout = _rated(accuracy, "look at the pairs: one side is written differently")
    table.add_row(f"told apart by format ({trait}) alone", layout)
    return table


def show(stage: Stage) -> None:
    """Print the summary of a finished stage and three of its pairs, with what rejected changes marked."""
    console = Console()
    console.print(summary(stage.result))
    pairs = read_parquet(stage.dir / "train.parquet")
    for pair in pairs.select(range(min(3, len(pairs)))):
        question = Text(pair["prompt"][-1]["content"])
        if pair["gold"] is not None:
            question.append(f" (answer: {pair['gold']})")
        rejected = Text()
        for part, is_new in marked(pair):
            rejected.append(part, "bold red" if is_new else "")
        table = Table("chosen", "rejected", title=question, title_justify="left")
        table.add_row(Text(pair["chosen"][0]["content"]), rejected)
        console.print(table)
    if set(stage.settings["pairs"]["methods"]) == {"dataset"}:
        # Not through rich, which would read `[/INST]` in a row as markup.
        for line in aside.account(stage.result, stage.name, aside.PAIR_SETTINGS):
            print(line)


def _rated(accuracy: float, mend: str) -> str:
    """A shortcut's accuracy, and whether it is too high."""
    comment = f"above 70%: {mend}" if accuracy > 0.7 else "near 50% is healthy"
    return f"{accuracy:.0%} ({comment})"
