"""What a pair method has to work with: training rows, and a model or a server that answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunebook.checkers.check import Check
from tunebook.checkers.judge import Judge
from tunebook.data.rows import Reject, evenly, images_of
from tunebook.generation.answers import Answer, Sampling, Usage, repeats, seed_of
from tunebook.generation.engines import COMPARED, SERVER, TRANSFORMERS, Engine, choose
from tunebook.generation.generate import answer_file, drop_other_answers
from tunebook.generation.local import Local
from tunebook.models.chat_template import Messages
from tunebook.pairs.pair import Sample, check_sample, is_broken, judge_sample
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe, ServerConfig
from tunebook.runs.stages import policy_name

Source = AbstractContextManager[Local | ServerConfig]
"""What answers, once it is entered."""

NOTICED = 32
"""Answers before a model is said to have collapsed."""


@dataclass(frozen=True)
class Request:
    """One answer to ask for."""

    row: dict[str, Any]
    """The training row that the answer is checked against."""
    prompt: Messages
    seed: int
    notes: dict[str, str] = field(default_factory=dict)
    """What else the sample says of itself."""
    beginning: str = ""
    """Of the answer, from which it goes on."""


@dataclass
class Work:
    """What a method has to work with, and what it leaves beside its pairs."""

    recipe: Recipe
    rows: list[dict[str, Any]]
    """The training rows of this round whose answers can be checked."""
    folder: Path
    open_source: Callable[[], Source]
    count_tokens: Callable[[str], int]
    """Of an answer, with the end of its turn."""
    number: int
    """The round."""
    depends_on: list[Any] = field(default_factory=list)
    """What answers depend on beside their prompts and sampling: the model, and what checks them."""
    check: Check = field(default_factory=Check)
    """What makes an answer right."""
    judge: Judge | None = None
    """What compares samples, where nothing checks them."""
    record: dict[str, Any] = field(default_factory=dict)
    """What the method adds to the stage's record."""
    rejects: list[Reject] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    """What a server has answered, to every method."""
    answered: int = 0
    repeating: int = 0

    def answer(self, file: str, requests: list[Request], label: str) -> list[Sample]:
        """An answer to each request, checked against its row; kept in `file` as the answers come."""
        prompts = []
        seeds = []
        images = []
        for request in requests:
            prompt = list(request.prompt)
            if request.beginning:
                prompt.append({"role": "assistant", "content": request.beginning})
            prompts.append(prompt)
            seeds.append(request.seed)
            images.append(images_of(request.row))

        def record(i: int, answer: Answer) -> Sample:
            self._refuse_collapsed(answer)
            if requests[i].beginning:
                text = requests[i].beginning + answer.text
                answer = replace(answer, text=text, tokens=self.count_tokens(text))
            return {**requests[i].notes, **self._checked(requests[i].row, answer, seeds[i])}

        def before(batch: dict[int, Answer]) -> None:
            answers = []
            for i, answer in batch.items():
                if not answer.truncated:
                    answers.append((requests[i].row, requests[i].beginning + answer.text))
            self.check.score_together(answers)

        config = self.recipe.pairs
        sampling = Sampling(
            config.max_new_tokens, config.batch_size, config.temperature, seeds, config.top_p, config.top_k
        )
        path = self.folder / file
        drop_other_answers(path, prompts, sampling, self.depends_on)
        source = self.open_source()
        return answer_file(path, source, prompts, sampling, record, label, images, self.usage, before)

    def seed(self, row: dict[str, Any], use: str) -> int:
        """The seed of a row's answer, which depends on nothing else: a resumed run draws the same answers."""
        return seed_of(f"{self.recipe.seed}/{self.number}/{row['source_id']}/{use}")

    def _checked(self, row: dict[str, Any], answer: Answer, seed: int) -> Sample:
        solution = row["completion"][0]["content"] if row["completion"] else ""
        if self.judge:
            verdict = "broken" if is_broken(answer.text, answer.truncated) else "judged"
            judged = {"verdict": verdict, "score": None}
        elif self.check.config:
            judged = judge_sample(self.check, row, answer.text, answer.truncated)
        else:
            judged = {"verdict": check_sample(answer.text, row["gold"], answer.truncated, solution)}
        # `prepare` has counted the prompt with the row's own solution, as the chat template renders it and
        # with its images. What the trainer would cut is in no pair.
        tokens = row["tokens"] - self.count_tokens(solution) + self.count_tokens(answer.text)
        if judged["verdict"] != "broken" and tokens > self.recipe.model.max_seq_length:
            judged["verdict"] = "too long"
        return {
            "text": answer.text,
            "tokens": answer.tokens,
            "truncated": answer.truncated,
            **judged,
            "seed": seed,
        }

    def _refuse_collapsed(self, answer: Answer) -> None:
        """Raises UserError when nearly all answers so far repeat one piece of text to their end.

        Such a model gives no pairs.
        """
        self.answered += 1
        self.repeating += repeats(answer.text)
        if self.answered >= NOTICED and self.repeating > 0.9 * self.answered:
            raise UserError(
                f"{self.repeating} of {self.answered} answers repeat one piece of text to their end, "
                "the model that answers has collapsed: train it again with a lower learning_rate, "
                "or lower pairs.temperature"
            )


def engine_of(recipe: Recipe, number: int, rows: list[dict[str, Any]]) -> Engine:
    """What answers in a round: a server or the model that the round starts from.

    Raises UserError for an engine that is not there.
    """
    config = recipe.pairs
    policy = policy_name(recipe, number)
    answers = len(rows) * config.samples
    local_only = "pairs.first_pit" if config.first_pit else ""
    if not rows:  # of an existing set nothing is asked
        return Engine(recipe, "pairs", TRANSFORMERS, [policy])
    kind = choose(recipe, config.server, "pairs", answers, local_only)
    prompts = [row["prompt"] for row in evenly(rows, COMPARED)]
    if kind == SERVER and "on_policy" not in config.methods:  # any model may write flawed solutions
        prompts = []
    return Engine(recipe, "pairs", kind, [policy], config.server, prompts, answers, config.max_new_tokens)


def count_verdicts(samples: list[Sample]) -> dict[str, int]:
    """How many samples have each verdict, the most frequent first; of broken ones those that are cut off."""
    counts = Counter[str]()
    for sample in samples:
        # More tokens bring these to an end, and the others nothing.
        is_cut_off = sample["verdict"] == "broken" and sample["truncated"]
        counts["cut off" if is_cut_off else sample["verdict"]] += 1
    return dict(counts.most_common())
