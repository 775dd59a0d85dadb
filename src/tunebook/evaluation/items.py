"""Held-out items: answered by a model, each answer checked against the item's own, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from tunebook.checkers.check import Check
from tunebook.checkers.maths import equal
from tunebook.data.images import swap_images
from tunebook.data.rows import evenly, images_of
from tunebook.data.storage import load, read_rows
from tunebook.evaluation.statistics import column, compare, mark, score_interval, wilson
from tunebook.generation.answers import Answer, Images, Sampling, repeats
from tunebook.generation.generate import answer_file, drop_other_answers, generate
from tunebook.generation.local import Local
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe, ServerConfig

Item = dict[str, Any]  # a held-out row: `prompt`, `gold`, perhaps `images`
Prediction = dict[str, Any]  # a line of `predictions.jsonl`, from `checked`
Source = Callable[[], AbstractContextManager[Local | ServerConfig]]  # opens what answers


def held_out_items(recipe: Recipe, limit: int | None) -> list[Item]:
    """At most `limit` items of the recipe's `evaluate.split`, evenly from all of it.

    Only items whose answers the recipe's `check` can say something of; there may be none.
    """
    check = Check(recipe.check)
    items = load(recipe, recipe.evaluate.split)
    # A row with tools is no question that can be asked as text.
    items = [item for item in items if check.can_judge(item) and not item.get("chat")]
    return evenly(items, limit)


def questions(recipe: Recipe, limit: int) -> list[Item]:
    """At most `limit` prompts to ask any model of the run: held-out ones, or what it was trained on.

    From the first split that is not empty; of DPO alone from its pairs.

    Raises UserError when there are none at all.
    """
    folder = recipe.run_dir / ("data" if recipe.data.sources else "pairs")
    for split in (recipe.evaluate.split, "test", "val", "train"):
        path = folder / f"{split}.parquet"
        if path.exists():
            rows = read_rows(recipe, path)
            items = [{"gold": None, **row} for row in rows if not row.get("chat")] or list(rows)
            if items:
                return evenly(items, limit)
    raise UserError(f"no prompts in {folder}: run `{recipe.command('prepare')}`")


@dataclass(frozen=True)
class Exam:
    """A model and the items that it answers. Its answers are kept in `folder` as they come."""

    recipe: Recipe
    stage: str
    source: Source
    items: list[Item]
    folder: Path
    depends_on: tuple[Any, ...] = ()
    """What its answers depend on beside prompts and sampling, as JSON values."""
    check: Check = field(default_factory=Check)
    """What makes an answer right."""

    def answer(self) -> list[Prediction]:
        """One answer to each item, at temperature 0."""
        return self._answer("predictions.jsonl", self.items, self._greedy, "answers")

    def sample(self) -> dict[str, Any]:
        """`evaluate.samples` answers to each item; pass@1, pass@k and majority vote (Wang et al. 2022)."""
        config = self.recipe.evaluate
        repeated = []  # each item `samples` times, one after the other
        for item in self.items:
            repeated += [item] * config.samples
        # Each answer has a seed of its own, so that an evaluation that goes on draws the same ones.
        seeds = list(range(self.recipe.seed, self.recipe.seed + len(repeated)))
        sampling = Sampling(config.max_new_tokens, config.batch_size, config.temperature, seeds)
        answers = self._answer("samples.jsonl", repeated, sampling, "samples")
        right = 0  # samples
        solved = 0  # items with a right answer among their samples
        agreed = 0  # items whose most frequent answer is right
        for start in range(0, len(answers), config.samples):
            of_item = answers[start : start + config.samples]
            solved += any(column(of_item, "correct"))
            right += sum(answer["correct"] is True for answer in of_item)
            agreed += majority_is_right(of_item)
        # Two answers in prose, or two pieces of JSON, are seldom the same: there is nothing to vote on.
        majority = None if self.check.config else agreed / len(self.items)
        return {
            "k": config.samples,
            "temperature": config.temperature,
            "pass@1": right / len(answers),
            "pass@k": solved / len(self.items),
            "majority": majority,
        }

    def answer_other_images(self, predictions: list[Prediction]) -> dict[str, Any]:
        """Some items answered again with a blank image and with another item's.

        Args:
            predictions: The answers to all items with their true images, for comparison.
        """
        # Some of the items that have images, from all over.
        with_images = [i for i, item in enumerate(self.items) if images_of(item)]
        places = evenly(with_images, self.recipe.evaluate.ablation)
        items = [self.items[i] for i in places]
        correct = {"true": [mark(predictions[i]) or 0.0 for i in places]}
        for kind in ("blank", "swapped"):
            images = swap_images(kind, column(items, "images"))
            answers = self._answer(f"predictions-{kind}.jsonl", items, self._greedy, f"{kind} image", images)
            correct[kind] = [mark(answer) or 0.0 for answer in answers]
        # A model that looks at its image loses when the image is blank.
        accuracies = {kind: fmean(marks) for kind, marks in correct.items()}
        return {**accuracies, "gain": compare(correct["blank"], correct["true"])}

    @property
    def _greedy(self) -> Sampling:
        return Sampling(self.recipe.evaluate.max_new_tokens, self.recipe.evaluate.batch_size)

    def _answer(
        self, file: str, items: list[Item], sampling: Sampling, label: str, images: Images | None = None
    ) -> list[Prediction]:
        """Items answered and checked, with their own images unless others are given."""
        if images is None:
            images = list(map(images_of, items))

        def record(i: int, answer: Answer) -> Prediction:
            return checked(items[i], answer, self.check)

        def before(batch: dict[int, Answer]) -> None:
            answers = [(items[i], answer.text) for i, answer in batch.items() if not answer.truncated]
            self.check.score_together(answers)

        path = self.folder / file
        prompts = column(items, "prompt")
        drop_other_answers(path, prompts, sampling, self.depends_on)
        label = f"{self.stage} {label}"
        source = self.source()
        return answer_file(path, source, prompts, sampling, record, label, images, before=before)


def answers_by_model(
    open_model: Callable[[str], AbstractContextManager[Local]],
    names: Iterable[str],
    rows: list[dict[str, Any]],
    max_new_tokens: int,
) -> list[dict[str, Answer]]:
    """A few rows answered by several models, greedily and in one batch: {model: answer} for each row."""
    prompts = column(rows, "prompt")
    images = list(map(images_of, rows))
    sampling = Sampling(max_new_tokens, batch_size=len(rows))
    answers: list[dict[str, Answer]] = [{} for _ in rows]
    for name in names:
        with open_model(name) as source:
            for batch in generate(source, prompts, sampling, images, label=f"{name} answers"):
                for i, answer in batch.items():
                    answers[i][name] = answer
    return answers


def checked(item: Item, answer: Answer, check: Check | None = None) -> Prediction:
    """An answer with the checker's verdict, and what of the item the tables and reports need.

    Of a recipe with a `check` it has a `score`. An answer that the checker fails at counts as wrong.
    """
    verdict = asdict((check or Check()).judge(item, answer.text, answer.truncated))
    if check is None or check.config is None:
        del verdict["score"]
    elif verdict["how"] == "failed":
        # Left out, answers that break a user's function would make the model look better.
        verdict |= {"correct": False, "score": 0.0}
    of_prose = {}
    if item["gold"] is None and item.get("completion"):  # to be read beside the models' answers
        of_prose["reference"] = item["completion"][-1]["content"]
    return {
        "source_id": item["source_id"],
        "slice": item["slice"],
        "group": item["group"],
        "difficulty": item["difficulty"],
        "gold": item["gold"],
        "prompt": item["prompt"][-1]["content"],
        **of_prose,
        "answer": answer.text,
        **verdict,
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
    """Counts and shares of predictions, in all and by slice. The interval is Wilson's at 95%.

    Left out are answers of which the checker says nothing.
    """
    scored = [prediction for prediction in predictions if prediction["correct"] is not None]
    slices: dict[str, list[Prediction]] = {}
    for prediction in scored:
        if prediction["slice"]:
            slices.setdefault(prediction["slice"], []).append(prediction)
    return {**_shares(scored), "slices": {name: _shares(slices[name]) for name in sorted(slices)}}


def summarise_answers(predictions: list[Prediction]) -> dict[str, Any]:
    """Of answers that nothing checks: how many end by themselves, how long they are, how many repeat."""
    n = len(predictions)
    return {
        "n": n,
        "ended": 1 - fmean(column(predictions, "truncated")),
        "mean_tokens": fmean(column(predictions, "tokens")),
        "repeating": sum(repeats(prediction["answer"]) for prediction in predictions) / n,
    }


def _shares(predictions: list[Prediction]) -> dict[str, Any]:
    n = len(predictions)
    correct = sum(column(predictions, "correct"))
    kinds = Counter(column(predictions, "how"))  # where the checker found the final answer
    # Where in an answer the final one stands is a matter of maths alone.
    if "score" in predictions[0]:
        scores = column(predictions, "score")
        of_checker = {"score": fmean(scores), "score_interval": score_interval(scores)}
    else:
        of_checker = {"boxed": kinds["boxed"] / n, "no_answer": kinds["none"] / n}
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "interval": wilson(correct, n),
        **of_checker,
        "truncated": fmean(column(predictions, "truncated")),
        "mean_tokens": fmean(column(predictions, "tokens")),
        # Collapsed models say one thing over and over.
        "repeating": sum(repeats(prediction.get("answer", "")) for prediction in predictions) / n,
    }
