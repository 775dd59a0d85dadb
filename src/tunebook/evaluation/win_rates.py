"""Win rates: the recipe's judge compares the answers of two models to the same held-out items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunebook.checkers.judge import Comparison, Judge, Outcome, reliability, warn_of_bias
from tunebook.data.fields import lower_cased
from tunebook.data.files import located
from tunebook.data.prompts import Prompts
from tunebook.data.records import all_records
from tunebook.data.rows import Reject, Unusable
from tunebook.evaluation.statistics import length_controlled, mcnemar, pairs_of_models, score_interval, wilson
from tunebook.generation.generate import read_records
from tunebook.models.chat_template import Messages
from tunebook.pairs.existing import side_of
from tunebook.pairs.forms import pair_labels, recognised
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import JudgeConfig, Recipe


def win_rates(
    recipe: Recipe, config: JudgeConfig, stages: dict[str, Path], items: list[dict[str, Any]]
) -> dict[str, Any]:
    """Each model against the one before it, and the last against the first.

    What the judge says is kept in `eval/judge/`, a file for each two models; answers that have not changed
    are not compared again.

    Args:
        stages: The folder of each model's answers.
        items: The held-out items that they answered.

    Returns:
        `comparisons`, and the judge's `agreement` with people where the recipe names their choices.
    """
    judge = Judge(recipe, config)
    folder = recipe.run_dir / "eval" / "judge"
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"comparisons": []}
    prompts = {item["source_id"]: item["prompt"] for item in items}
    answers = {}
    for name, place in stages.items():
        answers[name] = {record["source_id"]: record for record in read_records(place / "predictions.jsonl")}
    for first, second in pairs_of_models(list(stages)):
        # Only items that both have answered.
        comparisons = []
        for item, answer in answers[first].items():
            other = answers[second].get(item)
            if other is not None and item in prompts:
                comparisons.append(Comparison(prompts[item], answer["answer"], other["answer"]))
        label = f"{second} against {first}"
        outcomes = judge.compare(folder / f"{second}-{first}.jsonl", comparisons, f"judging {label}")
        counted = counts(comparisons, outcomes)
        warn_of_bias(counted)
        result["comparisons"].append({"first": first, "second": second, **counted})
    if config.human:
        result["agreement"] = agreement(recipe, judge, folder / "human.jsonl")
    result["usage"] = vars(judge.usage)
    return result


def counts(comparisons: list[Comparison], outcomes: list[Outcome]) -> dict[str, Any]:
    """The second model's win rate with its paired interval, and what the verdicts say of the judge.

    A tie is half a win. Comparisons without a verdict are left out and counted as `refused`.
    """
    facts = reliability(comparisons, outcomes)
    # Of each comparison with a verdict: who won, and by how much the second answer is longer.
    scores = []
    longer = []
    for comparison, outcome in zip(comparisons, outcomes, strict=True):
        if outcome.score is not None:
            scores.append(outcome.score)
            longer.append(len(comparison.second) - len(comparison.first))
    won = scores.count(1.0)
    lost = scores.count(0.0)
    return {
        **facts,
        "won": won,
        "lost": lost,
        "tied": len(scores) - won - lost,
        "win_rate": sum(scores) / len(scores),
        "interval": score_interval(scores),
        "p": mcnemar(won, lost),
        "length_controlled": length_controlled(scores, longer),
    }


def agreement(recipe: Recipe, judge: Judge, path: Path) -> dict[str, Any]:
    """How often the judge prefers what people have chosen, among what it prefers at all.

    Raises UserError when the file of human choices holds none that can be read.
    """
    config = judge.config
    prompts = Prompts(recipe)
    # People's choices are read as preference pairs are, in any of their forms.
    comparisons = []
    unread = 0
    named = all_records(located(config, str(config.human)), "train", "judge.human")
    for _, raw in pair_labels(named):
        try:
            comparisons.append(_choice(raw, prompts))
        except Unusable:
            unread += 1
    if not comparisons:
        raise UserError(f"judge.human: {config.human} holds no rows with prompt, chosen and rejected")
    outcomes = judge.compare(path, comparisons, "judging human choices")
    facts = reliability(comparisons, outcomes)
    scores = [outcome.score for outcome in outcomes]
    agreed = scores.count(1.0)
    decided = agreed + scores.count(0.0)
    return {
        **facts,
        "unread": unread,
        "decided": decided,
        "agreed": agreed,
        "share": agreed / decided if decided else None,
        "interval": wilson(agreed, decided) if decided else None,
    }


def _choice(raw: Any, prompts: Prompts) -> Comparison:
    """A row of human choices; the second answer is the chosen one. Raises Unusable."""
    if isinstance(raw, Reject):
        raise Unusable(raw.reason)
    row = recognised(raw).function(lower_cased(raw))
    prompt, chosen = side_of(row, "chosen", prompts)
    _, rejected = side_of(row, "rejected", prompts)
    return Comparison(prompt, _text(rejected), _text(chosen))


def _text(answer: Messages) -> str:
    return str(answer[0]["content"])
