"""What training has cost elsewhere: every model answers the same short items of several skills.

uv run tunebook evaluate --set evaluate.retention=true

An item counts from 0 to 1: the probability of the right one of its choices, or the share of its instructions
that a greedy answer obeys. It is right when the right choice is the likeliest, or all are obeyed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from tunebook.checkers.instructions import instructions
from tunebook.data.retention_items import SKILLS, retention_items
from tunebook.evaluation.likelihood import choice_probabilities
from tunebook.evaluation.statistics import (
    ALPHA,
    LEVEL,
    column,
    detectable,
    equivalence,
    holm,
    pairs_of_models,
)
from tunebook.generation.answers import Sampling
from tunebook.generation.generate import generate
from tunebook.generation.local import Local
from tunebook.recipe.sections import CheckerConfig
from tunebook.runs.files import PROGRESS, read_jsonl, write_json, write_text

FILE = "retention.jsonl"
"""In a stage's folder: an item a line."""

MAX_NEW_TOKENS = 64
BATCH_SIZE = 32

ITEMS = 8  # at a time, with about four choices each

ALL = "all"
"""The name of what all skills make together."""


Source = Callable[[], AbstractContextManager[Local]]
"""Opens a model in this process: choices are scored by their likelihood."""


def measure_retention(source: Source, folder: Path, label: str, key: str) -> None:
    """Let a model answer all items and write `retention.jsonl`, unless it is there.

    Args:
        key: Of what the answers depend on; other answers are replaced.
    """
    key_file = folder / f"{FILE}.key"
    if key_file.exists() and key_file.read_text() == key and (folder / FILE).exists():
        return
    items = retention_items()
    chosen = [item for item in items if "choices" in item]
    written = [item for item in items if "instructions" in item]
    key_file.unlink(missing_ok=True)  # what a kill leaves from here on is not whole
    progress = folder / PROGRESS
    write_json(progress, {FILE: len(items)})
    records = []
    with source() as opened, (folder / FILE).open("w", encoding="utf-8") as file:
        # Choices are scored by their likelihood, and only what is to be written is generated.
        for probabilities in choice_probabilities(opened, chosen, ITEMS, f"{label} retention"):
            for i, of_choices in probabilities.items():
                records.append(_chosen(chosen[i], of_choices))
            _show(file, records[-len(probabilities) :])
        sampling = Sampling(MAX_NEW_TOKENS, BATCH_SIZE)
        for batch in generate(opened, column(written, "prompt"), sampling, label=f"{label} instructions"):
            for i, answer in batch.items():
                score = _obeyed(written[i], answer.text)
                records.append(_record(written[i], answer.text, score, score == 1))
            _show(file, records[-len(batch) :])
    progress.unlink()
    # In the order of the suite, so that the lines of two models stand for the same items.
    places = {}
    for place, item in enumerate(items):
        places[item["source_id"]] = place
    records.sort(key=lambda record: places[record["source_id"]])
    write_text(folder / FILE, "".join(json.dumps(record) + "\n" for record in records))
    write_text(key_file, key)


def _show(file: TextIO, records: list[dict[str, Any]]) -> None:
    """Write new records at once: who follows the stage counts the lines."""
    file.writelines(json.dumps(record) + "\n" for record in records)
    file.flush()


def _chosen(item: dict[str, Any], probabilities: list[float]) -> dict[str, Any]:
    # The right choice is the first in the file; a model never sees the others beside it.
    likeliest = probabilities.index(max(probabilities))
    answer = item.get("lead", "") + item["choices"][likeliest]
    return _record(item, answer, probabilities[0], likeliest == 0)


def _record(item: dict[str, Any], answer: str, score: float, correct: bool) -> dict[str, Any]:
    verdict = {"answer": answer, "score": score, "correct": correct}
    return {"source_id": item["source_id"], "skill": item["skill"], "question": item["question"], **verdict}


def _obeyed(item: dict[str, Any], text: str) -> float:
    """The share of an item's instructions that an answer obeys."""
    config = CheckerConfig(name="instructions")
    (score,) = instructions(config, [item["prompt"]], [text], instructions=[item["instructions"]])
    return score or 0.0


def summarise_retention(folder: Path) -> dict[str, Any]:
    """Mean score and right answers of each skill, and of all together."""
    summary = {}
    for skill, records in _by_skill(folder).items():
        correct = sum(column(records, "correct"))
        summary[skill] = {"n": len(records), "score": fmean(column(records, "score")), "correct": correct}
    return summary


def compare_retention(folders: dict[str, Path], margin: float) -> list[dict[str, Any]]:
    """The skills of each two models that are compared (`compare_skills`), with `first` and `second`.

    Args:
        folders: {model: its stage's folder}.
        margin: Points by which a skill may change and count as equal.
    """
    comparisons = []
    for first, second in pairs_of_models(list(folders)):
        for compared in compare_skills(folders[first], folders[second], margin):
            comparisons.append({"first": first, "second": second, **compared})
    return comparisons


def compare_skills(first: Path, second: Path, margin: float) -> list[dict[str, Any]]:
    """Two models item by item: all skills together, then each.

    Returns:
        `difference` of the mean scores with Student's `interval`, the right answers `won` and `lost`, `p` of
        the paired t-test and `equal_p` of the equivalence within the margin; those of the skills are
        corrected for their number (Holm). `verdict`: `worse`, `better`, `equal` or `not shown`.
    """
    after = _by_skill(second)
    rows = []
    for skill, before in _by_skill(first).items():
        rows.append({"skill": skill, **_compare_skill(before, after[skill], margin)})
    # All together is one question, and comes first; the skills are many.
    for name in ("p", "equal_p"):
        for row, p in zip(rows[1:], holm(column(rows[1:], name)), strict=True):
            row[name] = p
    for row in rows:
        row["verdict"] = _verdict(row)
    return rows


def _compare_skill(
    before: list[dict[str, Any]], after: list[dict[str, Any]], margin: float
) -> dict[str, Any]:
    from scipy.stats import ttest_rel

    old = column(before, "score")
    new = column(after, "score")
    change = [b - a for a, b in zip(old, new, strict=True)]
    flips = [b["correct"] - a["correct"] for a, b in zip(before, after, strict=True)]
    interval, p = [0.0, 0.0], 1.0
    if any(change):
        # Scores of many sizes: the sign test would count one of a thousandth as much as a large one.
        test = ttest_rel(new, old)
        interval = [float(bound) for bound in test.confidence_interval(LEVEL)]
        p = float(test.pvalue)
    return {
        "n": len(change),
        "difference": fmean(change),
        "interval": interval,
        "won": flips.count(1),
        "lost": flips.count(-1),
        "p": p,
        "equal_p": equivalence(change, margin / 100),
        "detectable": detectable(sum(value**2 for value in change), len(change)),
    }


def _verdict(compared: dict[str, Any]) -> str:
    # After Holm's correction the test may say less than the interval of the skill alone.
    low, high = compared["interval"]
    if compared["p"] < ALPHA and not low <= 0 <= high:
        return "worse" if high < 0 else "better"
    return "equal" if compared["equal_p"] < ALPHA else "not shown"


def flips(first: Path, second: Path) -> list[dict[str, Any]]:
    """The items that one of two models has right and the other wrong, lost ones first, with both answers."""
    changed = []
    for before, after in zip(read_jsonl(first / FILE), read_jsonl(second / FILE), strict=True):
        if before["correct"] != after["correct"]:
            changed.append(
                {
                    "outcome": "won" if after["correct"] else "lost",
                    "skill": before["skill"],
                    "question": before["question"],
                    "before": before["answer"],
                    "after": after["answer"],
                }
            )
    return sorted(changed, key=lambda item: item["outcome"])


def _by_skill(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """A stage's records, all and by skill."""
    records = list(read_jsonl(folder / FILE))
    by_skill = {ALL: records}
    for skill in SKILLS:
        by_skill[skill] = [record for record in records if record["skill"] == skill]
    return by_skill
