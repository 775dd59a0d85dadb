"""A judge: a language model that says which of two answers to one question is better.

It is asked in both orders, because many judges prefer what they read first: a judge that contradicts itself
has said nothing, and the comparison is a tie (Zheng et al. 2023, MT-Bench).
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunebook.checkers.maths import after_thinking
from tunebook.generation.answers import Answer, Sampling, Usage, fill
from tunebook.generation.generate import answer_file, drop_other_answers
from tunebook.generation.local import Local, local
from tunebook.models import loading
from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import read_text
from tunebook.recipe.sections import PACE, JudgeConfig, ModelConfig, Recipe, ServerConfig
from tunebook.runs.files import file_hash

Source = AbstractContextManager[Local | ServerConfig]
"""What judges, once it is entered."""

MARKED = re.compile(r"\[\[\s*([ABC])\s*\]\]")
ALONE = re.compile(r"\W*(?:answer\s+)?([ABC])\W*", re.IGNORECASE)

BATCH = 16
"""Comparisons that a local judge reads at once: each holds two answers."""

WON = {("B", "A"): 1.0, ("A", "B"): 0.0}
"""The score of the second answer by the verdicts in both orders, where they agree on one of the two."""

BIASED = 0.75
"""A judge that takes one place more often than this is said to be biased."""


@dataclass(frozen=True)
class Comparison:
    """Two answers to one question."""

    prompt: Messages
    first: str
    second: str


@dataclass(frozen=True)
class Outcome:
    """The letter of the verdict in each order; None where there is none."""

    first_as_a: str | None
    second_as_a: str | None

    @property
    def score(self) -> float | None:
        """How the second answer did against the first: 1 won, 0 lost, 0.5 a tie; None without a verdict.

        What does not hold in both orders is a tie.
        """
        if self.first_as_a is None or self.second_as_a is None:
            return None
        return WON.get((self.first_as_a, self.second_as_a), 0.5)


class Judge:
    """The recipe's judge. Its model is loaded, where it is local, with the first comparison."""

    def __init__(self, recipe: Recipe, config: JudgeConfig) -> None:
        self.config = config
        self.usage = Usage()
        """What its server has answered so far."""
        self._open = _opener(recipe, config)

    def compare(self, path: Path, comparisons: list[Comparison], label: str) -> list[Outcome]:
        """The outcome of each comparison; what the judge says is kept in `path` as it comes.

        Raises UserError when its server does not answer, refuses everything, or the budget is spent.
        """
        template = read_text(self.config.find_file(self.config.prompt))
        prompts: list[Messages] = []
        for comparison in comparisons:
            parts = {"{question}": conversation_text(comparison.prompt)}
            first, second = comparison.first.strip(), comparison.second.strip()
            # Both orders stand side by side in the file.
            for a, b in ((first, second), (second, first)):
                text = fill(template, {**parts, "{answer_a}": a, "{answer_b}": b})
                prompts.append([{"role": "user", "content": text}])

        def record(_: int, answer: Answer) -> dict[str, Any]:
            return {"text": answer.text, "verdict": verdict(answer.text)}

        sampling = Sampling(self.config.max_new_tokens, BATCH)
        drop_other_answers(path, prompts, sampling, self.settings)
        verdicts = answer_file(path, self._open(), prompts, sampling, record, label, usage=self.usage)
        outcomes = []
        for i in range(0, len(verdicts), 2):
            outcomes.append(Outcome(verdicts[i]["verdict"], verdicts[i + 1]["verdict"]))
        return outcomes

    @property
    def settings(self) -> dict[str, Any]:
        """What its verdicts rest on, beside what it compares."""
        content = self.config.model_dump(mode="json", exclude={"server": PACE, "human": True})
        return {**content, "prompt": file_hash(self.config.find_file(self.config.prompt))}


def _opener(recipe: Recipe, config: JudgeConfig) -> Callable[[], Source]:
    """Opens what judges: the server, or the local model."""
    server = config.server
    if server is not None:
        return lambda: contextlib.nullcontext(server)

    @functools.cache
    def load() -> tuple[Any, Any]:
        model = ModelConfig(base=str(config.model), max_seq_length=recipe.model.max_seq_length)
        model.place(config.places)
        return loading.load_model(recipe.model_copy(update={"model": model}))

    @contextlib.contextmanager
    def open_model() -> Iterator[Local]:
        with local(*load(), None) as source:
            yield source

    return open_model


def verdict(text: str) -> str | None:
    """`A`, `B`, or `C` for a tie; None where a judge says none of them."""
    text = after_thinking(text).strip()
    marked = MARKED.findall(text)
    if marked:
        return str(marked[-1])
    alone = ALONE.fullmatch(text.rpartition("\n")[2])
    return alone[1].upper() if alone else None


def conversation_text(prompt: Messages) -> str:
    """A question as the judge reads it; of a conversation each message with its role."""
    if len(prompt) == 1:
        return str(prompt[0]["content"]).strip()
    return "\n\n".join(f"{message['role']}: {message['content']}".strip() for message in prompt)


def reliability(comparisons: list[Comparison], outcomes: list[Outcome]) -> dict[str, Any]:
    """What the verdicts say of the judge itself; a judge without a bias is near 0.5 in both shares.

    Returns:
        `n` comparisons, `refused` ones without a verdict, `contradicted` ones; `first_place`: the share of
        verdicts for what was shown first; `longer`: the share of won comparisons that the longer answer won.
        Shares are None where there is nothing to count.

    Raises UserError where the judge gave no verdict at all.
    """
    places = Counter[str]()
    won_by = Counter[str]()
    refused = contradicted = 0
    for comparison, outcome in zip(comparisons, outcomes, strict=True):
        verdicts = (outcome.first_as_a, outcome.second_as_a)
        # A tie says nothing of the place.
        places.update(letter for letter in verdicts if letter in ("A", "B"))
        refused += None in verdicts
        contradicted += verdicts in (("A", "A"), ("B", "B"))
        longer = len(comparison.second) - len(comparison.first)
        if outcome.score in (0, 1) and longer:
            won_by["longer" if (longer > 0) == (outcome.score == 1) else "shorter"] += 1
    if outcomes and refused == len(outcomes):
        raise UserError(
            "the judge gives no verdict: its answers end in none of [[A]], [[B]], [[C]]. "
            "Look at judge.prompt, or raise judge.max_new_tokens"
        )
    return {
        "n": len(outcomes),
        "refused": refused,
        "contradicted": contradicted,
        "first_place": _share(places["A"], places.total()),
        "longer": _share(won_by["longer"], won_by.total()),
    }


def _share(count: int, total: int) -> float | None:
    return count / total if total else None


def warn_of_bias(facts: dict[str, Any]) -> None:
    """Say in one line where the judge's verdicts follow the place of an answer."""
    share = facts["first_place"]
    if share is not None and not 1 - BIASED <= share <= BIASED:
        print(
            f"Warning: the judge takes the answer that it is shown first in {share:.0%} of its verdicts, and "
            f"contradicts itself in {facts['contradicted']} of {facts['n']} comparisons, which are ties"
        )
