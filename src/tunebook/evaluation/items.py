"""Held-out items: answered by a model, each answer checked against the item's own, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunebook.checkers.maths import equal, verify
from tunebook.data.images import instead
from tunebook.data.rows import evenly, images_of
from tunebook.data.storage import load
from tunebook.evaluation.statistics import column, compare, wilson
from tunebook.generation.answers import Answer, Images, Sampling, repeats
from tunebook.generation.generate import answer_file, generate, read_records
from tunebook.generation.local import Local
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe

Item = dict[str, Any]
"""A held-out row with its `prompt`, its `gold` answer and perhaps `images`."""

Prediction = dict[str, Any]
"""A line of `predictions.jsonl`: an answer with the checker's verdict on it. Comes from `checked`."""

Source = Callable[[], AbstractContextManager[Local]]
"""Opens the model that answers."""


def held_out_items(recipe: Recipe, limit: int | None, checkable: bool = True) -> list[Item]:
    """At most `limit` items of the recipe's `evaluate.split`, evenly from all of it.

    Args:
        checkable: Only items that have an answer to check against.

    Raises UserError when there are none.
    """
    split = recipe.evaluate.split
    items = load(recipe, split)
    if checkable:
        items = [item for item in items if item["gold"] is not None]
    if items:
        return evenly(items, limit)
    if checkable:
        raise UserError(
            f"the {split} split has no row with an answer to check against: add a source that has "
            "(an `answer` column, or format gsm8k), or run `uv run tunebook bench`"
        )
    raise UserError(
        f"the {split} split is empty: export compares answers to held-out questions, "
        f"run `{recipe.command('prepare')}`"
    )


def answer_items(
    path: Path,
    source: Source,
    items: list[Item],
    sampling: Sampling,
    label: str,
    images: Images | None = None,
) -> list[Prediction]:
    """Each item answered and checked, kept in `path` as the answers come.

    Args:
        images: Other image files than the items' own, a list for each item.
    """
    if images is None:
        images = [images_of(item) for item in items]

    def record(i: int, answer: Answer) -> Prediction:
        return checked(items[i], answer)

    return answer_file(path, source(), column(items, "prompt"), sampling, record, label, images)


def answer_greedily(
    recipe: Recipe, stage: str, source: Source, items: list[Item], folder: Path
) -> list[Prediction]:
    """One answer to each item, at temperature 0."""
    return answer_items(folder / "predictions.jsonl", source, items, _greedy(recipe), f"{stage} answers")


def answer_repeatedly(
    recipe: Recipe, stage: str, source: Source, items: list[Item], folder: Path
) -> dict[str, Any]:
    """`evaluate.samples` answers to each item; pass@1, pass@k and majority vote (Wang et al. 2022)."""
    config = recipe.evaluate
    repeated = []
    for item in items:
        repeated += [item] * config.samples
    # Each answer has a seed of its own, so that an evaluation that goes on draws the same ones.
    seeds = list(range(recipe.seed, recipe.seed + len(repeated)))
    sampling = Sampling(config.max_new_tokens, config.batch_size, config.temperature, seeds)
    answers = answer_items(folder / "samples.jsonl", source, repeated, sampling, f"{stage} samples")
    solved = 0
    agreed = 0
    for start in range(0, len(answers), config.samples):
        of_item = answers[start : start + config.samples]
        solved += any(column(of_item, "correct"))
        agreed += majority_is_right(of_item)
    return {
        "k": config.samples,
        "temperature": config.temperature,
        "pass@1": _mean(column(answers, "correct")),
        "pass@k": solved / len(items),
        "majority": agreed / len(items),
    }


def answer_other_images(
    recipe: Recipe, stage: str, source: Source, items: list[Item], folder: Path
) -> dict[str, Any]:
    """Items answered again with a blank image and with another item's.

    They are compared with the answers to the true image that `answer_greedily` has left in `folder`.
    """
    with_images = [i for i, item in enumerate(items) if images_of(item)]
    places = evenly(with_images, recipe.evaluate.ablation)
    chosen = [items[i] for i in places]
    marks = column(read_records(folder / "predictions.jsonl"), "correct")
    correct = {"true": [marks[i] for i in places]}
    for kind in ("blank", "swapped"):
        path = folder / f"predictions-{kind}.jsonl"
        images = instead(kind, column(chosen, "images"))
        answers = answer_items(path, source, chosen, _greedy(recipe), f"{stage}, {kind} image", images)
        correct[kind] = column(answers, "correct")
    return {
        "true": _mean(correct["true"]),
        "blank": _mean(correct["blank"]),
        "swapped": _mean(correct["swapped"]),
        "gain": compare(correct["blank"], correct["true"]),
    }


def answers_by_model(
    open_model: Callable[[str], AbstractContextManager[Local]],
    names: Iterable[str],
    rows: list[dict[str, Any]],
    max_new_tokens: int,
) -> list[dict[str, Answer]]:
    """The same few rows answered by several models, greedily and in one batch.

    Returns:
        {model: answer} for each row.
    """
    images = [images_of(row) for row in rows]
    answers: list[dict[str, Answer]] = [{} for _ in rows]
    for name in names:
        with open_model(name) as source:
            sampling = Sampling(max_new_tokens, batch_size=len(rows))
            for batch in generate(source, column(rows, "prompt"), sampling, images, label=f"{name} answers"):
                for i, answer in batch.items():
                    answers[i][name] = answer
    return answers


def checked(item: Item, answer: Answer) -> Prediction:
    """An answer with the checker's verdict, and what of the item the tables and reports need."""
    # A number in an answer that was cut off is not its final answer.
    verdict = verify(answer.text, item["gold"], boxed_only=answer.truncated)
    return {
        "source_id": item["source_id"],
        "slice": item["slice"],
        "group": item["group"],
        "difficulty": item["difficulty"],
        "gold": item["gold"],
        "prompt": item["prompt"][-1]["content"],
        "answer": answer.text,
        **asdict(verdict),
        "tokens": answer.tokens,
        "truncated": answer.truncated,
    }


def majority_is_right(answers: list[Prediction]) -> bool:
    """Whether the most frequent final answer is right; of equally frequent ones the first counts."""
    votes: Counter[str] = Counter()
    right = set()
    for answer in answers:
        if answer["parsed"]:
            # 0.5 and 1/2 are one answer.
            final = next((known for known in votes if equal(known, answer["parsed"])), answer["parsed"])
            votes[final] += 1
            if answer["correct"]:
                right.add(final)
    return bool(votes) and votes.most_common(1)[0][0] in right


def summarise(predictions: list[Prediction]) -> dict[str, Any]:
    """Counts and shares of predictions, in all and by slice. The interval is Wilson's at 95%."""
    slices: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        if prediction["slice"]:
            slices.setdefault(prediction["slice"], []).append(prediction)
    return {**_shares(predictions), "slices": {name: _shares(slices[name]) for name in sorted(slices)}}


def _greedy(recipe: Recipe) -> Sampling:
    return Sampling(recipe.evaluate.max_new_tokens, recipe.evaluate.batch_size)


def _shares(predictions: list[Prediction]) -> dict[str, Any]:
    n = len(predictions)
    correct = sum(column(predictions, "correct"))
    kinds = Counter(column(predictions, "how"))
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "interval": wilson(correct, n),
        "boxed": kinds["boxed"] / n,
        "truncated": _mean(column(predictions, "truncated")),
        "no_answer": kinds["none"] / n,
        "mean_tokens": _mean(column(predictions, "tokens")),
        "repeating": sum(repeats(prediction.get("answer", "")) for prediction in predictions) / n,
    }


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))
