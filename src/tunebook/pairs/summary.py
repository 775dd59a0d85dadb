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

FEW = 20
"""Pairs below which DPO has hardly a step to learn from: at 16 pairs a step it would be one."""


TOO_HIGH = 0.7
"""The accuracy of a shortcut from which on the pairs teach it."""


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
    table.add_row("told apart by length alone", length_alone(record))
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
    # Not through rich, which would read `[/INST]` in a row as markup.
    for line in remarks(stage.result, stage.name):
        print(line)


def remarks(record: dict[str, Any], folder: str) -> list[str]:
    """What of a finished `pairs` stage a user has to know: rows that were put aside, and too few pairs."""
    lines = []
    if _is_existing(record):
        lines += aside.account(record, folder, aside.PAIR_SETTINGS)
    count = record["rows"]["train"]
    if count >= FEW:
        return lines
    few = f"WARNING: DPO learns little from {count} pair{'s' if count != 1 else ''}"
    passed = record.get("pass_counts", {})
    never, prompts = passed.get("0", 0), sum(passed.values())
    if 2 * never > prompts:
        mend = (
            f"{never} of {prompts} prompts have no right sample: train SFT longer, "
            "raise pairs.max_new_tokens, or set pairs.reference_chosen=true where rows have their own answers"
        )
    elif prompts:
        mend = "raise pairs.prompts or pairs.samples"
    else:
        mend = "some hundreds are usual"
    return [*lines, f"{few}: {mend}"]


def length_alone(record: dict[str, Any]) -> str:
    """How well length alone tells the sides apart, and what helps where that is too well."""
    mend = "lower pairs.max_length_ratio"
    if _is_existing(record):  # whose pairs are taken as they are
        mend = "DPO will learn the length: even it out in the set"
    return _rated(record["length_only_accuracy"], mend)


def _is_existing(record: dict[str, Any]) -> bool:
    return set(record["settings"]["pairs"]["methods"]) == {"dataset"}


def _rated(accuracy: float, mend: str) -> str:
    """A shortcut's accuracy, and whether it is too high."""
    comment = f"above 70%: {mend}" if accuracy > TOO_HIGH else "near 50% is healthy"
    return f"{accuracy:.0%} ({comment})"
