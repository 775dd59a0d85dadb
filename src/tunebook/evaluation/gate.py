"""What `tunebook evaluate --gate` holds a run to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunebook.evaluation import first_screen
from tunebook.evaluation.retention import ALL, FILE, compare_skills
from tunebook.evaluation.statistics import ALPHA, column, compare, mark
from tunebook.generation.generate import read_records
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import GateRule, Recipe
from tunebook.runs.files import read_json

NOT_SHOWN, WORSE, BROKEN_ELSEWHERE = 3, 4, 5
"""Exit codes of a gate that does not hold. 2: it could not be asked."""


@dataclass
class Failure:
    """A rule that does not hold."""

    text: str
    code: int


class GateFailed(UserError):
    """Some rules do not hold. The exit code tells the gravest failure."""

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__(f"gate: {'; '.join(failure.text for failure in failures)}")
        codes = {failure.code for failure in failures}
        # A gate that could not be asked comes first; then the task itself, then what it has cost elsewhere.
        order = (2, WORSE, BROKEN_ELSEWHERE, NOT_SHOWN)
        self.exit_code = next(code for code in order if code in codes)


def gate(recipe: Recipe) -> list[Failure]:
    """The rules of the recipe's `evaluate.gate` that do not hold; empty when all do."""
    failures = []
    for rule in recipe.evaluate.gate:
        second = rule.second or _last_model(recipe)
        name = f"{second} against {rule.first}"
        if rule.suite == "retention":
            name += " on the retention suite"
        if rule.slice:
            name += f" on {rule.slice}"
        check = _elsewhere if rule.suite == "retention" else _on_task
        for text, code in check(recipe, rule, second):
            failures.append(Failure(f"{name}: {text}", code))
    return failures


def _last_model(recipe: Recipe) -> str:
    """The last model that was evaluated."""
    summary = read_json(recipe.run_dir / "eval" / "summary.json")
    return first_screen.last_model(summary) if summary.get("stages") else "the last model"


def _on_task(recipe: Recipe, rule: GateRule, second_model: str) -> list[tuple[str, int]]:
    """Why a rule about the held-out items does not hold, with its exit code; empty when it does."""
    folder = recipe.run_dir / "eval"
    first = read_records(folder / rule.first / "predictions.jsonl")
    second = read_records(folder / second_model / "predictions.jsonl")
    same_items = column(first, "prompt") == column(second, "prompt") and column(first, "gold") == column(
        second, "gold"
    )
    if rule.slice is not None:
        first = [prediction for prediction in first if prediction["slice"] == rule.slice]
        second = [prediction for prediction in second if prediction["slice"] == rule.slice]
    if not first or not same_items:
        return [("not both have been evaluated on the same items", 2)]
    # Items of which the checker says nothing, for one model's answer or for both, show nothing.
    marks_before = []
    marks_after = []
    for before, after in zip(map(mark, first), map(mark, second), strict=True):
        if before is not None and after is not None:
            marks_before.append(before)
            marks_after.append(after)
    if not marks_before:
        return [("the held-out rows have no `answer` that could be checked", 2)]
    compared = compare(marks_before, marks_after)
    low, high = compared["interval"]
    if 100 * low <= rule.at_least:
        demand = f"the lower end must be above {rule.at_least:+.1f}"
    # Of few items the bootstrap interval is too narrow, so that the exact test must agree.
    elif rule.at_least >= 0 and compared["p"] >= ALPHA:
        demand = f"McNemar's p = {compared['p']:.2g} must be below {ALPHA}"
    else:
        return []
    is_worse = high < 0 and compared["p"] < ALPHA
    return [(f"{_points(compared)}, {demand}", WORSE if is_worse else NOT_SHOWN)]


def _elsewhere(recipe: Recipe, rule: GateRule, second: str) -> list[tuple[str, int]]:
    """Why a rule about the retention suite does not hold, with exit codes; empty when it does.

    Without a skill in `slice` all items together must keep the bound, and no skill may be shown to break it.
    """
    folders = {name: recipe.run_dir / "eval" / name for name in (rule.first, second)}
    for name, folder in folders.items():
        if not (folder / FILE).exists():
            return [(f"{name} has not answered it: set `evaluate.retention: true` and evaluate", 2)]
    comparisons = compare_skills(folders[rule.first], folders[second], recipe.evaluate.margin)
    by_skill = {compared["skill"]: compared for compared in comparisons}
    asked = rule.slice or ALL
    if asked not in by_skill:
        raise UserError(f"gate: no skill {asked!r} in the retention suite: there are {', '.join(by_skill)}")
    failures = []
    for skill, compared in by_skill.items():
        low, high = compared["interval"]
        below = f"{skill}: {_points(compared)}"
        if compared["verdict"] == "worse" and 100 * high < rule.at_least and asked in (skill, ALL):
            failures.append((f"{below}, the upper end is below {rule.at_least:+.1f}", BROKEN_ELSEWHERE))
        elif skill == asked and 100 * low <= rule.at_least:
            code = BROKEN_ELSEWHERE if compared["verdict"] == "worse" else NOT_SHOWN
            failures.append((f"{below}, the lower end must be above {rule.at_least:+.1f}", code))
    return failures


def _points(compared: dict[str, Any]) -> str:
    low, high = compared["interval"]
    return (
        f"{100 * compared['difference']:+.1f} points "
        f"(95% interval {100 * low:+.1f} to {100 * high:+.1f}, n = {compared['n']})"
    )
