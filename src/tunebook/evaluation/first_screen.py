"""What a reader of a report sees first, and a model card says: one true sentence, one table, one figure."""

from __future__ import annotations

from typing import Any

from tunebook.data.retention_items import SKILLS
from tunebook.evaluation import tables
from tunebook.evaluation.statistics import ALPHA, BEYOND_DOUBT, FEW, is_graded, mcnemar
from tunebook.evaluation.table import Table
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json
from tunebook.runs.stages import CONTROL

NOT_MEASURED = "What it cost elsewhere was not measured (`evaluate.retention`)."

VERDICTS = {"equal": "equal within ±{margin:g}", "not shown": "not shown either way"}


def sentence(summary: dict[str, Any], model: str | None = None) -> str:
    """Whether a model is better than the one before it, and what it cost elsewhere against the base model.

    Args:
        summary: `eval/summary.json`.
        model: By default the last; the control stands aside.

    Returns:
        Nothing where no two models were compared.
    """
    model = model or last_model(summary)
    on_task = _comparison(summary.get("comparisons", []), model)
    if on_task is not None:
        helped = _on_task(on_task, is_graded(summary["stages"]))
    else:
        loss = _comparison(summary.get("losses", []), model)
        if loss is None:
            return ""
        helped = _on_loss(loss)
    return f"{helped}. {_elsewhere(summary.get('retention'), model)}"


def show(recipe: Recipe) -> None:
    """Print the sentence, and of a run with the retention suite the table of all skills."""
    summary = read_json(recipe.run_dir / "eval" / "summary.json")
    if not summary:
        return
    if "retention" in summary:
        overview(summary).print("the task and other skills, against base")
    print(sentence(summary))


def last_model(summary: dict[str, Any]) -> str:
    """The last model that was evaluated, beside DPO's control."""
    # The control is there to be compared with, not to be used.
    names = [name for name in summary["stages"] if name != CONTROL]
    return names[-1] if names else CONTROL


def verdict(compared: dict[str, Any], even: float = 0) -> str:
    """`better`, `worse` or `not shown`: interval and test must both show it; `too few` of very few items.

    Of few items the bootstrap interval alone is too narrow.

    Args:
        even: Where neither model is better: 0 of a difference, 0.5 of a win rate.
    """
    low, high = compared["interval"]
    if compared["n"] < FEW and compared["p"] >= BEYOND_DOUBT:
        return "too few"
    if compared["p"] >= ALPHA or low <= even <= high:
        return "not shown"
    return "better" if low > even else "worse"


def _comparison(
    comparisons: list[dict[str, Any]], model: str, first: str | None = None
) -> dict[str, Any] | None:
    """A model against another; by default against the one before it, which comes first in the list."""
    for compared in comparisons:
        if compared["second"] == model and first in (None, compared["first"]):
            return compared
    return None


def _on_task(compared: dict[str, Any], graded: bool) -> str:
    first, second, n = compared["first"], compared["second"], compared["n"]
    # Of right and wrong alone the difference is one of items, which is easier to imagine than points.
    more = compared["won"] - compared["lost"]
    if graded:
        size = 100 * compared["difference"]
        word = "more" if size >= 0 else "fewer"
        claim = f"{second} scores {abs(size):.1f} points {word} than {first} on {n} held-out items"
    elif more == 0:
        claim = f"{second} gets as many of {n} held-out items right as {first}"
    else:
        word = "more" if more > 0 else "fewer"
        claim = f"{second} gets {abs(more)} {word} of {n} held-out items right than {first}"
    return f"{claim} ({points(compared)}){_remark(compared)}"


def _on_loss(compared: dict[str, Any]) -> str:
    first, second, n = compared["first"], compared["second"], compared["n"]
    if "prefers" in compared:  # of pairs alone: this is what DPO is for
        of_pairs = by_preference(compared)
        return f"From {first} to {second} {of_pairs['text']}{_remark(of_pairs, even=0.5)}"
    low, high = compared["interval"]
    word = "likelier" if compared["difference"] < 0 else "less likely"
    return (
        f"{second} finds the {n} held-out answers {word} than {first} does "
        f"(loss per token {compared['difference']:+.3f}, 95% {low:+.3f} to {high:+.3f}){_remark(compared)}"
    )


def by_preference(compared: dict[str, Any]) -> dict[str, Any]:
    """A comparison of pairs by what DPO is for: in how many chosen gained more than rejected; its `text`."""
    low, high = compared["prefers_interval"]
    n = compared["n"]
    pairs = round(compared["prefers"] * n)
    gained = f"{pairs} of {n} held-out pairs"
    share = f"{compared['prefers']:.1%}, 95% {100 * low:.1f} to {100 * high:.1f}"
    text = f"chosen gained on rejected in {gained} ({share})"
    return {**compared, "interval": [low, high], "p": mcnemar(pairs, n - pairs), "text": text}


def _remark(compared: dict[str, Any], even: float = 0) -> str:
    """What is said behind a comparison that shows nothing."""
    outcome = verdict(compared, even)
    if outcome == "too few":
        setting = "pairs.val" if "prefers" in compared else "what is held out, or evaluate.limit"
        return f"; n = {compared['n']} is too few to say anything: raise {setting}"
    if outcome == "not shown" and compared["p"] >= ALPHA:
        return f", which shows no difference (p = {compared['p']:.2g})"
    return ", which shows no difference" if outcome == "not shown" else ""


def _elsewhere(retention: dict[str, Any] | None, model: str) -> str:
    """What the retention suite says of a model against base."""
    if retention is None:
        return NOT_MEASURED
    margin = f"{retention['margin']:g} points"
    # The names of the skills by what is shown of them.
    skills: dict[str, list[str]] = {"worse": [], "better": [], "equal": [], "not shown": []}
    for compared in retention["comparisons"]:
        if (compared["first"], compared["second"]) == ("base", model) and compared["skill"] in SKILLS:
            name = SKILLS[compared["skill"]]
            if compared["verdict"] == "worse":
                name += f" ({100 * compared['difference']:+.1f} points)"
            skills[compared["verdict"]].append(name)
    if not any(skills.values()):
        return NOT_MEASURED
    # Only what is shown may be claimed; the rest is named.
    known = skills["better"] + skills["equal"]
    if skills["worse"]:
        text = f"Against base it got worse in {_list(skills['worse'])}"
    elif known:
        text = f"Against base nothing else got worse by more than {margin}"
    else:
        return f"Against base no other skill is shown to be worse, nor to be the same within {margin}."
    if skills["not shown"]:
        text += f"; not shown either way: {_list(skills['not shown'])}"
    return f"{text}."


def overview(summary: dict[str, Any]) -> Table:
    """The last model against base: the task, and each skill of the retention suite."""
    table = Table(what="", difference="last − base, points (95% interval)", verdict="")
    for row in overview_rows(summary):
        label = row["verdict"]
        if label in VERDICTS:
            label = VERDICTS[label].format(margin=summary.get("retention", {}).get("margin", 0))
        scores = {name: f"{100 * score:.1f}%" for name, score in row["scores"].items()}
        cells = {"n": row["n"], **scores, "difference": tables.points(row)}
        table.add(what=row["what"], **cells, verdict=label)
    return table


def overview_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """What `overview` shows and the figure draws: `what`, `scores` of the models, and the comparison."""
    stages = summary["stages"]
    model = last_model(summary)
    rows = []
    on_task = _comparison(summary.get("comparisons", []), model, "base")
    if on_task:
        key = "score" if is_graded(stages) else "accuracy"
        scores = {name: stage[key] for name, stage in stages.items()}
        rows.append({**on_task, "what": "the task", "scores": scores, "verdict": verdict(on_task)})
    for compared in summary.get("retention", {}).get("comparisons", []):
        if (compared["first"], compared["second"]) == ("base", model):
            skill = compared["skill"]
            scores = {name: stage["retention"][skill]["score"] for name, stage in stages.items()}
            rows.append({**compared, "what": SKILLS.get(skill, "all other skills"), "scores": scores})
    return rows


def points(compared: dict[str, Any]) -> str:
    """A difference in points with its interval, as a sentence has it."""
    low, high = compared["interval"]
    return f"{100 * compared['difference']:+.1f} points, 95% {100 * low:+.1f} to {100 * high:+.1f}"


def _list(names: list[str]) -> str:
    """As one says it."""
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}"
