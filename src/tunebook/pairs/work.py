"""What a pair method has to work with."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunebook.data.rows import Reject, Row
from tunebook.generation.answers import Answer, Sampling, repeats
from tunebook.generation.local import Local, local
from tunebook.models import adapters, loading
from tunebook.pairs.pair import Sample, check_sample
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import PairsConfig, Recipe, ServerConfig
from tunebook.runs.stages import policy_name

NOTICED = 32
"""Answers before a model is said to have collapsed."""


@dataclass
class Work:
    """What a method has to work with, and what it leaves beside its pairs."""

    recipe: Recipe
    rows: list[dict[str, Any]]
    folder: Path
    source: Callable[[], AbstractContextManager[Local | ServerConfig]]
    count_tokens: Callable[[str], int]
    number: int
    record: dict[str, Any] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    control: Callable[[Row], Reject | None] = lambda _: None
    """The check for control tokens in the text."""
    answered: int = 0
    repeating: int = 0

    def fits(self, row: dict[str, Any], text: str) -> bool:
        """Whether the trainer takes a row's prompt with this answer whole: `prepare` has counted it with the row's own solution, as the
        chat template renders it and with its images."""
        tokens = (
            int(row["tokens"]) - self.count_tokens(row["completion"][0]["content"]) + self.count_tokens(text)
        )
        return tokens <= self.recipe.model.max_seq_length

    def notice(self, answer: Answer) -> None:
        """Count an answer. Raises UserError when nearly all so far repeat one piece of text to their end: such a model gives no pairs."""
        self.answered += 1
        self.repeating += repeats(answer.text)
        if self.answered >= NOTICED and self.repeating > 0.9 * self.answered:
            raise UserError(
                f"{self.repeating} of {self.answered} answers repeat one piece of text to their end, the model that answers has collapsed: "
                "train it again with a lower learning_rate, or lower pairs.temperature"
            )


def _opener(recipe: Recipe, number: int) -> Callable[[], AbstractContextManager[Local | ServerConfig]]:
    """Opens what answers: the server, or the round's model, which is loaded once and only when something is left to ask."""
    loaded: list[Any] = []

    @contextlib.contextmanager
    def open_model() -> Iterator[Local]:
        if not loaded:
            model, tok = loading.load(recipe)
            loaded.extend(
                (
                    adapters.load_adapters(
                        model, {"policy": recipe.run_dir / policy_name(number) / "adapter"}
                    ),
                    tok,
                )
            )
        with local(loaded[0], loaded[1], "policy") as source:
            yield source

    server = recipe.pairs.server
    return open_model if server is None else lambda: contextlib.nullcontext(server)


def sampling_of(config: PairsConfig, seeds: list[int]) -> Sampling:
    return Sampling(config.max_new_tokens, config.batch_size, config.temperature, seeds)


def checked_sample(work: Work, row: dict[str, Any], answer: Answer, seed: int) -> Sample:
    verdict: str = check_sample(answer.text, row["gold"], answer.truncated, row["completion"][0]["content"])
    if verdict != "broken" and not work.fits(row, answer.text):
        verdict = "too long"
    return {
        "text": answer.text,
        "tokens": answer.tokens,
        "truncated": answer.truncated,
        "verdict": verdict,
        "seed": seed,
    }


def count_verdicts(samples: list[Sample]) -> dict[str, int]:
    return dict(Counter(s["verdict"] for s in samples).most_common())


def seed_of(work: Work, source_id: str, what: str) -> int:
    return int(
        hashlib.sha256(f"{work.recipe.seed}/{work.number}/{source_id}/{what}".encode()).hexdigest()[:8], 16
    )
