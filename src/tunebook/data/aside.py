"""What became of all rows, in plain lines: in, out, and aside with the reason and the setting that helps."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from tunebook.data.rows import Reject, Row
from tunebook.recipe.errors import UserError, shorten

# A larger share of rows that are put aside is a warning.
LARGE_SHARE = 0.05

# Rows with an end token of another model, from which on they are worth a warning.
SEVERAL = 3

# What ends a turn or a text in common chat templates. The model's own never get so far: they are put aside.
END_TOKENS = re.compile(
    r"<\|(?:eot_id|eom_id|end_of_text|endoftext|im_end|end|return)\|>|</s>|<eos>|<end_of_turn>|\[/INST\]"
    r"|<｜end▁of▁sentence｜>"
)

CONTAMINATION = "a higher `data.contamination` keeps more of them (at 1 all of a question must be in the row)"

# Of each reason the setting that lets such rows in.
SETTINGS = {
    "duplicate": "`data.duplicates: none` keeps them",
    "near-duplicate": "`data.near_duplicate: 1` or `data.duplicates: none` keeps them",
    "in the test or val split": CONTAMINATION,
    "in a benchmark": CONTAMINATION,
    "in the retention suite": CONTAMINATION,
    "too long": "a higher `model.max_seq_length` keeps them",
    "missing column": "`columns` of the source names the column that has it",
    "empty cell": "no setting keeps these: fill the cells",
    "unknown columns": "`columns` or `format` of the source says how its rows are read",
    "no header": "a first line with the names of the columns says how its rows are read",
    "labelled false": "`pairs.dataset` makes pairs of such rows",
    "wrong answer": "without a column `answer` or `gold` no answer is compared; with a `check` a lower "
    "`check.threshold` keeps more of them",
    "unknown instruction": "docs/checkers.md lists the instructions that are known",
    "refusal": "`data.refusals: keep` keeps them",
    # The embedded model's own shows none.
    "tools": "`model.chat_template: prompt/chatml_tools.jinja` shows tools, as many models' templates do",
    "refused by the chat template": "`model.chat_template` names another template",
}

# The same of preference sets.
PAIR_SETTINGS = {
    "tie": "a tie shows no preference",
    "missing column": "`pairs.columns` names the column that has it",
}
for _reason in (
    "in the test or val split",
    "in a benchmark",
    "in the retention suite",
    "too long",
    "refused by the chat template",
):
    PAIR_SETTINGS[_reason] = SETTINGS[_reason]


class EndTokens:
    """Counts the rows whose text has the end token of another model."""

    def __init__(self) -> None:
        self.rows = 0
        self.tokens = Counter[str]()

    def add(self, row: Row) -> None:
        """Look at all messages of a row."""
        found = set[str]()
        for message in row.prompt + row.completion:
            found.update(END_TOKENS.findall(message["content"]))
        self.rows += bool(found)
        self.tokens.update(found)


def record(reasons: Counter[str], first: dict[str, Reject], end_tokens: EndTokens) -> dict[str, Any]:
    """What a stage's record says of the rows that were put aside.

    Args:
        reasons: how many rows were put aside for each.
        first: the first reject of each reason.
    """
    examples = {}
    for reason, reject in first.items():
        examples[reason] = f"{reject.source_id}: {shorten(reject.detail)}".removesuffix(": ")
    entry: dict[str, Any] = {"quarantined": dict(reasons), "examples": examples}
    if end_tokens.rows >= SEVERAL:
        tokens = [token for token, _ in end_tokens.tokens.most_common(3)]
        entry["end_tokens"] = {"rows": end_tokens.rows, "tokens": tokens}
    return entry


def check_share(reasons: Counter[str], kept: int, most: float, example: str) -> None:
    """Raise UserError when more than the share `most` of all rows was put aside.

    Args:
        example: of the commonest reason, and where all of them are.
    """
    put_aside = reasons.total()
    read = put_aside + kept
    if put_aside > most * read:
        raise UserError(
            f"{put_aside} of {read} rows were put aside: {example}. "
            f"If that is right, `data.max_aside: {min(1.0, put_aside / read + 0.01):.2f}` goes on"
        )


def account(entry: dict[str, Any], stage: str = "data", settings: dict[str, str] = SETTINGS) -> list[str]:
    """The last lines of `prepare` and `pairs`: rows in, out and aside, with an example and what helps.

    Args:
        entry: the stage's record.
        stage: its folder, where the quarantine lies.
        settings: of each reason the setting that lets such rows in.
    """
    reasons = entry["quarantined"]
    put_aside = sum(reasons.values())
    kept = sum(entry["rows"].values())
    read = kept + put_aside
    lines = [f"rows: {read} in, {kept} out, {put_aside} aside (in {stage}/quarantine.jsonl)"]
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        example = entry.get("examples", {}).get(reason)
        beginning = f"  {count} {reason}, the first {example}" if example else f"  {count} {reason}"
        lines.append(f"{beginning}; {settings.get(reason, 'no setting keeps these: mend the rows')}")
    if put_aside > LARGE_SHARE * read:
        lines.append(f"WARNING: {put_aside / read:.0%} of the rows were put aside")
    if "end_tokens" in entry:
        tokens = ", ".join(entry["end_tokens"]["tokens"])
        rows = entry["end_tokens"]["rows"]
        lines.append(
            f"WARNING: {rows} rows hold end tokens of another model ({tokens}); they are kept as text"
        )
    return lines
