"""The recipe's `check`: what makes an answer right, asked by data checks, pairs and evaluation alike."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from tunebook.checkers.maths import verify
from tunebook.checkers.process import CheckerFailed, CheckerProcess
from tunebook.checkers.registry import CHECKERS, Checker
from tunebook.checkers.texts import Scores, schema_file
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import CheckConfig, CheckerConfig
from tunebook.runs.files import file_hash

Row = dict[str, Any]  # of the data: `prompt`, `gold`, perhaps `columns`

TEXTS = {"messages", "conversations", "conversation", "prompt", "completion", "chosen", "rejected"}
TEXTS |= {"image", "images", "tools"}
"""Columns that checkers do not get: TRL hands texts on as prompts and completions."""

SAID = 3
"""Failures of a checker that are printed, each with its row."""

TOO_MANY = 10
"""Failures after which a run stops, when more calls have failed than not."""


@dataclass(frozen=True)
class Judgement:
    """What was found of an answer."""

    correct: bool | None
    """None: nothing can be said."""
    score: float | None = None
    """From 0 to 1, of a recipe with a `check`."""
    parsed: str | None = None
    """The final answer as it stands there, where one is read."""
    how: Literal["boxed", "last number", "text", "none", "failed"] = "none"
    """Where it stands; `failed`: the checker raised an error, took too long or ended."""


class Check:
    """What the recipe's `check` says of answers. Without one, `maths` of rows with an answer."""

    def __init__(self, config: CheckConfig | None = None) -> None:
        self.config = config
        self.calls = 0
        self.failures = 0
        self._ahead: dict[tuple[str, int, str], float | None] = {}
        self._functions: list[tuple[CheckerConfig, Callable[..., Scores]]] = []
        for checker in self._checkers:
            self._functions.append((checker, _opened(checker)))

    @property
    def _checkers(self) -> list[CheckerConfig]:
        return self.config.checkers if self.config else []

    @property
    def is_graded(self) -> bool:
        """Whether there are scores between 0 and 1, and not right and wrong alone."""
        return len(self._checkers) > 1 or any(_known(checker).is_graded for checker in self._checkers)

    @property
    def names(self) -> str:
        """The names of its checkers."""
        return ", ".join(checker.name for checker in self._checkers) or "maths"

    @property
    def threshold(self) -> float:
        """The least score of a right answer."""
        return self.config.threshold if self.config else 1.0

    def can_judge(self, row: Row) -> bool:
        """Whether answers to a row can be checked: it has what one of the checkers needs."""
        if self.config is None:
            return row.get("gold") is not None
        columns = _columns(row)
        for checker in self._checkers:
            needed = _known(checker).needs
            has_words = checker.kind == "contains" and checker.words
            if needed is None or has_words or columns.get(needed) is not None:
                return True
        return False

    def score_together(self, answers: list[tuple[Row, str]]) -> None:
        """Score answers that `judge` is asked about next, where a checker scores many at once faster."""
        self._ahead.clear()
        if not answers:
            return
        prompts = [row["prompt"] for row, _ in answers]
        completions = [[{"role": "assistant", "content": text}] for _, text in answers]
        for checker, function in self._functions:
            if _known(checker).in_batches:
                scores = function(prompts=prompts, completions=completions)
                for (row, text), score in zip(answers, scores, strict=True):
                    self._ahead[checker.name, id(row), text] = score

    def judge(self, row: Row, text: str, truncated: bool = False) -> Judgement:
        """Whether an answer to a row is right.

        Args:
            row: With its `prompt`, `gold` and, where it has more, `columns` as JSON.
            truncated: It was cut off: a number in it is not its final answer, and no checker gives it a score
                above 0.

        Raises UserError when a checker cannot be loaded or fails at nearly every answer, and BadInstruction
        for a row whose instructions are not known.
        """
        if self.config is None:
            if row.get("gold") is None:
                return Judgement(None)
            # A number in an answer that was cut off is not its final answer.
            verdict = verify(text, row["gold"], boxed_only=truncated)
            return Judgement(verdict.correct, None, verdict.parsed, verdict.how)
        if not self.can_judge(row):
            return Judgement(None)
        if truncated:
            return Judgement(False, 0.0)
        # The mean over the checkers that say something, as TRL adds up rewards without those that are None.
        total = 0.0
        weights = 0.0
        for checker, function in self._functions:
            try:
                score = self._score(checker, function, row, text)
            except CheckerFailed:
                # Half of a score would be taken for all of it.
                return Judgement(None, None, None, "failed")
            if score is not None:
                total += checker.weight * score
                weights += checker.weight
        if not weights:
            return Judgement(None)
        # Rounded, because weights of 0.1 and 0.2 make 0.9999999999999999 of two ones.
        mean = round(total / weights, 9)
        return Judgement(mean >= self.config.threshold, mean, None, "text")

    def _score(
        self, checker: CheckerConfig, function: Callable[..., Scores], row: Row, text: str
    ) -> float | None:
        """One checker's score of one answer. Raises CheckerFailed once the failure is said."""
        needed = _known(checker).needs
        columns = _columns(row)
        if needed and not checker.words and columns.get(needed) is None:
            return None
        if (checker.name, id(row), text) in self._ahead:
            return self._ahead[checker.name, id(row), text]
        # TRL's signature is of batches. One answer at a time, so that a failure is that of a row.
        lists = {name: [value] for name, value in columns.items()}
        completion = [{"role": "assistant", "content": text}]
        self.calls += 1
        try:
            return function(prompts=[row["prompt"]], completions=[completion], **lists)[0]
        except CheckerFailed as error:
            # A function that fails at every answer would let hours of sampling go by for nothing.
            self.failures += 1
            message = f"{checker.name}, row {row.get('source_id', '?')}: {error}"
            if self.failures >= TOO_MANY and 2 * self.failures > self.calls:
                failed = f"{self.failures} of {self.calls} answers could not be checked"
                raise UserError(f"check: {failed}, the last: {message}") from None
            if self.failures <= SAID:
                tqdm.write(f"{message}; the answer has no score")
            raise

    @property
    def settings(self) -> dict[str, Any]:
        """What the key of a stage that asks it rests on; empty without a `check`."""
        if self.config is None:
            return {}
        versions = {checker.name: _known(checker).version for checker in self._checkers}
        # Without defaults: an option that a checker gets later changes no key.
        content = self.config.model_dump(mode="json", exclude_defaults=True)
        return {"check": {**content, "versions": versions}}

    @property
    def files(self) -> dict[str, Path]:
        """The files that scores depend on, by the names that the recipe has for them.

        Raises UserError when one is not there.
        """
        files = {}
        for checker in self._checkers:
            if checker.kind == "python":
                name = checker.name.rpartition(":")[0]
                files[name] = checker.find_file(name)
            elif schema := schema_file(checker):
                files[str(checker.json_schema)] = schema
        return files

    @property
    def inputs(self) -> dict[str, str]:
        """Their hashes, for the keys of stages. Raises what `files` raises."""
        return {name: file_hash(path) for name, path in self.files.items()}


def _known(checker: CheckerConfig) -> Checker:
    return CHECKERS[checker.kind]


def _opened(checker: CheckerConfig) -> Callable[..., Scores]:
    """A checker with TRL's signature: prompts, completions and columns."""
    known = _known(checker)
    # Started with the first answer: the keys of stages are asked for more often than answers are checked.
    if known.in_process:
        return CheckerProcess(checker)
    return functools.partial(known.function, checker)


def other_columns(raw: dict[str, Any]) -> str:
    """The columns of a raw row beside its texts and images, as JSON: what a row keeps for its checkers."""
    columns = {}
    for name, value in raw.items():
        # pandas writes NaN where a row has nothing.
        is_missing = value is None or (isinstance(value, float) and math.isnan(value))
        if name not in TEXTS and not is_missing and not isinstance(value, bytes):
            columns[name] = value
    # Rows of Parquet may hold dates.
    return json.dumps(columns, default=str)


def _columns(row: Row) -> dict[str, Any]:
    """The columns of a row that checkers get, by name: its own ones and `gold`."""
    columns: dict[str, Any] = {}
    if row.get("columns"):
        columns = json.loads(row["columns"])
    return {**columns, "gold": row.get("gold")}
