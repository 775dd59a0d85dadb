"""What a report says of the retention suite: every comparison with its tests, and every flip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunebook.data.retention_items import SKILLS
from tunebook.evaluation import first_screen
from tunebook.evaluation.retention import flips
from tunebook.evaluation.table import Table
from tunebook.evaluation.tables import p_value, points

SHOWN = 120
"""Characters of a text in a table."""

EXPLAINED = (
    "An item counts from 0 to 1: the probability of the right one of its choices, or the share of its "
    "instructions that the answer obeys. `p (different)` is the paired t-test, `p (equal ...)` are two "
    "one-sided t-tests; those of the skills are corrected for their number (Holm). `detectable`: the "
    "smallest loss that so many items would show four times out of five."
)


def section(run: Path, summary: dict[str, Any]) -> list[str]:
    """The tables; nothing where the suite was not asked."""
    retention = summary.get("retention")
    if retention is None:
        return []
    last = first_screen.last_model(summary)
    # What was forgotten shows best in the answers themselves.
    changed = flips(run / "eval" / "base", run / "eval" / last)
    lost = sum(item["outcome"] == "lost" for item in changed)
    return [
        "## Other skills (retention suite)",
        retention_table(retention).markdown(),
        EXPLAINED,
        f"### Right → wrong ({lost}) and wrong → right ({len(changed) - lost}), base → {last}",
        flips_table(changed).markdown() or "None.",
    ]


def retention_table(retention: dict[str, Any]) -> Table:
    """All comparisons of the retention suite, with the tests behind the verdicts."""
    table = Table(
        difference="difference (95% interval)",
        won="wrong → right",
        lost="right → wrong",
        equal=f"p (equal within ±{retention['margin']:g})",
        p="p (different)",
    )
    for compared in retention["comparisons"]:
        table.add(
            step=f"{compared['first']} → {compared['second']}",
            skill=SKILLS.get(compared["skill"], "all"),
            n=compared["n"],
            difference=points(compared),
            won=compared["won"],
            lost=compared["lost"],
            p=p_value(compared["p"]),
            equal=p_value(compared["equal_p"]),
            detectable=f"{100 * compared['detectable']:.1f}",
            verdict=compared["verdict"],
        )
    return table


def flips_table(changed: list[dict[str, Any]]) -> Table:
    """The items that one of two models has right and the other wrong."""
    table = Table(outcome="")
    for item in changed:
        table.add(
            outcome="right → wrong" if item["outcome"] == "lost" else "wrong → right",
            skill=SKILLS[item["skill"]],
            question=_cell(item["question"]),
            before=_cell(item["before"]),
            after=_cell(item["after"]),
        )
    return table


def _cell(text: str) -> str:
    """A text on one line of a Markdown table, from its end: a question stands after its passage."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= SHOWN else f"... {line[-SHOWN:]}"
