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
from tunebook.evaluation.statistics import compare, wilson
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

    prompts = [item["prompt"] for item in items]
    return answer_file(path, source(), prompts, sampling, record, label, images)


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
    seeds = [recipe.seed + i for i in range(len(repeated))]
    sampling = Sampling(config.max_new_tokens, config.batch_size, config.temperature, seeds)
    answers = answer_items(folder / "samples.jsonl", source, repeated, sampling, f"{stage} samples")
    solved = 0
    agreed = 0
    for start in range(0, len(answers), config.samples):
        of_item = answers[start : start + config.samples]
        solved += any(answer["correct"] for answer in of_item)
        agreed += majority_is_right(of_item)
    return {
        "k": config.samples,
        "temperature": config.temperature,
        "pass@1": sum(answer["correct"] for answer in answers) / len(answers),
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
    predictions = read_records(folder / "predictions.jsonl")
    correct = {"true": [predictions[i]["correct"] for i in places]}
    for kind in ("blank", "swapped"):
        path = folder / f"predictions-{kind}.jsonl"
        images = instead(kind, [item["images"] for item in chosen])
        label = f"{stage}, {kind} image"
        answers = answer_items(path, source, chosen, _greedy(recipe), label, images)
        correct[kind] = [answer["correct"] for answer in answers]
    accuracies = {kind: sum(marks) / len(marks) for kind, marks in correct.items()}
    return {**accuracies, "gain": compare(correct["blank"], correct["true"])}


def answers_by_model(
    open_model: Callable[[str], AbstractContextManager[Local]],
    names: Iterable[str],
    rows: list[dict[str, Any]],
    max_new_tokens: int,
) -> list[dict[str, Answer]]:
    """The same few rows answered by several models, greedily and in one batch: {model: answer} for each row."""
    prompts = [row["prompt"] for row in rows]
    images = [images_of(row) for row in rows]
    answers: list[dict[str, Answer]] = [{} for _ in rows]
    for name in names:
        with open_model(name) as source:
            sampling = Sampling(max_new_tokens, batch_size=len(rows))
            for batch in generate(source, prompts, sampling, images, label=f"{name} answers"):
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
    final = [answer for answer in answers if answer["parsed"]]
    votes: Counter[str] = Counter()
    for answer in final:
        # 0.5 and 1/2 are one answer.
        known = next((vote for vote in votes if equal(vote, answer["parsed"])), answer["parsed"])
        votes[known] += 1
    if not votes:
        return False
    best = votes.most_common(1)[0][0]
    return any(answer["correct"] for answer in final if equal(best, answer["parsed"]))


def summarise(predictions: list[Prediction]) -> dict[str, Any]:
    """Counts and shares of predictions, in all and by slice. The interval is Wilson's at 95%."""
    by_slice: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        if prediction["slice"]:
            by_slice.setdefault(prediction["slice"], []).append(prediction)
    slices = {name: _shares(by_slice[name]) for name in sorted(by_slice)}
    return {**_shares(predictions), "slices": slices}


def _greedy(recipe: Recipe) -> Sampling:
    return Sampling(recipe.evaluate.max_new_tokens, recipe.evaluate.batch_size)


def _shares(predictions: list[Prediction]) -> dict[str, Any]:
    n = len(predictions)
    right = sum(p["correct"] for p in predictions)
    return {
        "n": n,
        "correct": right,
        "accuracy": right / n,
        "interval": wilson(right, n),
        "boxed": sum(p["how"] == "boxed" for p in predictions) / n,
        "truncated": sum(p["truncated"] for p in predictions) / n,
        "no_answer": sum(p["how"] == "none" for p in predictions) / n,
        "mean_tokens": sum(p["tokens"] for p in predictions) / n,
        "repeating": sum(repeats(p.get("answer", "")) for p in predictions) / n,
    }
