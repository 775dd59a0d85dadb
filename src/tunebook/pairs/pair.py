"""What a pair and a sample are, whether a sample can be a side of a pair, and how two become one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tunebook.checkers.check import Check
from tunebook.checkers.maths import verify
from tunebook.data.checks import NOT_AN_ANSWER
from tunebook.data.rows import images_of
from tunebook.data.similarity import words
from tunebook.recipe.sections import PairsConfig

Sample = dict[str, Any]
"""An answer to a training prompt: its `text`, its `tokens`, the `seed` it was drawn with, its `verdict`.

The verdict is that of `check_sample` or `judge_sample`, `too long`, or `judged` where a judge ranks samples.
Of a recipe with a `check` or a judge there is a `score` too, None where nothing can be said.
"""

Pair = dict[str, Any]
"""A row of `COLUMNS`, with the names of its `images`."""

COLUMNS = {
    "prompt": "messages",
    "chosen": "messages",
    "rejected": "messages",
    # The row or record that the pair comes from, and the method or kind of error.
    "source_id": "string",
    "strategy": "string",
    # The answer that both sides were checked against; None where there is none to check against.
    "gold": "string",
    # How the sides were sampled, as JSON.
    "sampling": "string",
    # What the check said; None without an answer.
    "chosen_correct": "bool",
    "rejected_correct": "bool",
    # Of the answer alone, with the end of its turn.
    "chosen_tokens": "int32",
    "rejected_tokens": "int32",
    # By how much chosen was scored better: by the recipe's `check`, or in an existing set with scores.
    "margin": "float32",
}
"""The columns of `pairs/*.parquet` with their types."""


def check_sample(text: str, gold: str, truncated: bool, solution: str) -> Literal["right", "wrong", "broken"]:
    """Whether an answer can be chosen (`right`), rejected (`wrong`) or neither (`broken`).

    Broken is what is cut off, empty, an error text, unboxed, or ends under another heading than the row's own
    solution: such a pair would teach the format.
    """
    verdict = verify(text, gold, boxed_only=True)
    boxed = verdict.how == "boxed" and bool((verdict.parsed or "").strip())
    same_format = _last_heading(text) == _last_heading(solution)
    if truncated or not boxed or not same_format or NOT_AN_ANSWER.search(text):
        return "broken"
    return "right" if verdict.correct else "wrong"


def judge_sample(check: Check, row: dict[str, Any], text: str, truncated: bool) -> dict[str, Any]:
    """`verdict` and `score` of an answer by the recipe's `check`.

    Broken is what is cut off, empty, or an error text that is not right; `no score` is of what the checker
    cannot say anything.
    """
    judgement = check.judge(row, text, truncated)
    verdict = "no score"
    if judgement.correct is not None:
        verdict = "right" if judgement.correct else "wrong"
    if is_broken(text, truncated, is_right=verdict == "right"):
        verdict = "broken"
    return {"verdict": verdict, "score": judgement.score}


def is_broken(text: str, truncated: bool, is_right: bool = False) -> bool:
    """Whether an answer is cut off, empty, or an error text that is not right."""
    is_no_answer = not text.strip() or (not is_right and NOT_AN_ANSWER.search(text))
    return bool(truncated or is_no_answer)


def reference(row: dict[str, Any], count_tokens: Callable[[str], int], check: Check | None = None) -> Sample:
    """A row's own solution in the place of a sample, with its score where the recipe has a `check`."""
    text = row["completion"][0]["content"]
    sample = {"text": text, "tokens": count_tokens(text), "seed": None}
    if check and check.config:
        sample |= judge_sample(check, row, text, truncated=False)
    return sample


def make_pair(
    config: PairsConfig, row: dict[str, Any], chosen: Sample, rejected: Sample, strategy: str
) -> Pair:
    """The pair of two samples of a row, both verified once more unless they have a score."""
    sampling = {
        "temperature": config.temperature,
        "max_new_tokens": config.max_new_tokens,
        "model": config.server.model if config.server else "policy",
        "chosen_seed": chosen["seed"],
        "rejected_seed": rejected["seed"],
    }
    margin = None
    if chosen.get("score") is not None and rejected.get("score") is not None:
        margin = chosen["score"] - rejected["score"]
    return {
        "prompt": row["prompt"],
        "chosen": [{"role": "assistant", "content": chosen["text"]}],
        "rejected": [{"role": "assistant", "content": rejected["text"]}],
        "source_id": row["source_id"],
        "strategy": strategy,
        "gold": row["gold"],
        "sampling": json.dumps(sampling),
        "chosen_correct": _is_right(chosen, row),
        "rejected_correct": _is_right(rejected, row),
        "chosen_tokens": chosen["tokens"],
        "rejected_tokens": rejected["tokens"],
        "margin": margin,
        "images": [Path(path).name for path in images_of(row)],
    }


def margins(pairs: list[Pair]) -> dict[str, float] | None:
    """The least, the median and the greatest margin of pairs; None where none is scored."""
    values = sorted(pair["margin"] for pair in pairs if pair["margin"] is not None)
    if not values:
        return None
    return {"min": values[0], "median": values[len(values) // 2], "max": values[-1]}


def content_of(sample: Sample) -> str:
    """What two samples that say the same have alike: the words, or all of the text where it has a score.

    Layout, case and punctuation may be what a checker looks at: a comma, a brace.
    """
    text = str(sample["text"])
    return text.strip() if "score" in sample else " ".join(words(text))


def distinct(samples: list[Sample], verdicts: tuple[str, ...]) -> list[Sample]:
    """The samples of some verdicts that say different things."""
    by_content = {}
    # From the end, so that of equal samples the first is kept; it takes the place of the last.
    for sample in reversed(samples):
        if sample["verdict"] in verdicts:
            by_content[content_of(sample)] = sample
    return list(reversed(by_content.values()))


def length_ratio(a: Sample, b: Sample) -> float:
    """How many times as many tokens the longer of two samples has."""
    shorter, longer = sorted((a["tokens"], b["tokens"]))
    return float(longer / max(1, shorter))


def question_key(pair: Pair) -> str:
    """What a pair's prompt asks, but for layout, case and punctuation: the same for all pairs of a prompt."""
    text = "\n".join(message["content"] for message in pair["prompt"] if message["role"] != "system")
    return " ".join([*words(text), *pair["images"]])


def _is_right(sample: Sample, row: dict[str, Any]) -> bool | None:
    if sample.get("verdict") == "judged":
        return None
    if "score" in sample:
        return bool(sample["verdict"] == "right")
    return verify(sample["text"], row["gold"], boxed_only=True).correct


def _last_heading(text: str) -> str | None:
    headings = re.findall(r"^#+ .*\S", text, re.M)
    return headings[-1] if headings else None
