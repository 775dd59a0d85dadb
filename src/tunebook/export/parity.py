"""Is an export the same model as the adapter? Loaded from disk in a fresh process and compared.

Compared are the prompts as the export's own chat template renders them and the log-probability of each token
of the adapter's own greedy answers (teacher forcing), in the same precision on the same device. The export's
own greedy answers are reported: how many are the same, where they stop, whether they are right.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from tunebook.checkers.check import Check
from tunebook.evaluation.items import Item
from tunebook.export.measure import Measured, measure_folder, measure_gguf
from tunebook.recipe.errors import UserError


class Limits(NamedTuple):
    """What counts as equal."""

    top_1_agreement: float
    """Positions at which the likeliest token is the same, at least."""
    mean_logp_difference: float
    """Of a token's log-probability, at most."""


# What computing in bfloat16 instead of float32 did to one and the same adapter on SmolLM2-135M: 0.005 on
# average, and never another likeliest token. The rest of each limit is room for other models.
FLOAT32 = Limits(0.99, 0.01)
BITS = {16: Limits(0.97, 0.05), 8: Limits(0.9, 0.1), 4: Limits(0.8, 0.5)}
LOSSY = Limits(0.7, 1.0)
"""For fewer than 4 bits, which do answer differently: the table tells what they lose."""

ANSWERS_EQUAL = 0.95
"""Greedy answers of an adapter in float32 that are the same text, at least.

In 16 bit the same model may answer otherwise in another batch, on another device or in another kernel: 14 of
20 answers were equal, each token within 0.005. There it is only reported.
"""


def limits(name: str, dtype: str) -> Limits:
    """For `adapter`, `merged` or a GGUF type such as `q4_k_m`, computed as `dtype`."""
    if name == "adapter" and dtype == "float32":
        return FLOAT32
    if name in ("adapter", "merged", "f32", "f16", "bf16"):
        return BITS[16]
    digits = re.search(r"\d", name)
    bits = int(digits[0]) if digits else 0
    if bits == 8:
        return BITS[8]
    return BITS[4] if bits >= 4 else LOSSY


def check(
    export: Path,
    name: str,
    reference: Measured,
    items: list[Item],
    max_new_tokens: int,
    answer_check: Check | None = None,
) -> dict[str, Any]:
    """Load an export afresh and compare it with `reference`.

    Returns a row of the parity table, its `differs` empty when all is well. Of one that cannot be loaded the
    row says only why.
    """
    try:
        return _check(export, name, reference, items, max_new_tokens, answer_check)
    except UserError as error:
        return {"items": 0, "differs": [str(error)]}


def _check(
    export: Path,
    name: str,
    reference: Measured,
    items: list[Item],
    max_new_tokens: int,
    answer_check: Check | None,
) -> dict[str, Any]:
    if export.suffix == ".gguf":
        measured = measure_gguf(export, reference, [item["prompt"] for item in items], max_new_tokens)
    else:
        measured = measure_folder(export, reference, items, max_new_tokens)
    return compare(name, reference, measured, items, answer_check)


def compare(
    name: str, reference: Measured, measured: Measured, items: list[Item], answer_check: Check | None = None
) -> dict[str, Any]:
    """One row of the parity table. Differences are over all compared positions."""
    logps: list[float] = []
    logits: list[float] = []
    ends: list[float] = []
    same_top = same_prompt = same_answer = 0
    for expected, actual in zip(reference.questions, measured.questions, strict=True):
        logps += _differences(expected.logps, actual.logps)
        if not expected.truncated:  # its last token is the end of the turn
            ends += _differences(expected.logps[-1:], actual.logps[-1:])
        if actual.logits:
            logits += _differences(expected.logits, actual.logits)
        same_top += sum(a == b for a, b in zip(expected.top, actual.top, strict=True))
        same_prompt += expected.prompt == actual.prompt
        same_answer += expected.answer == actual.answer
    n = len(reference.questions)
    if not logps:
        return {"items": 0, "differs": ["weights: no position of the answers could be compared"]}
    row = {
        "items": n,
        "dtype": measured.dtype,
        "positions": len(logps),
        "top_1_agreement": same_top / len(logps),
        "mean_logp_difference": sum(logps) / len(logps),
        "max_logp_difference": max(logps),
        "end_logp_difference": sum(ends) / len(ends) if ends else None,
        "max_logit_difference": max(logits, default=None),
        "prompts_equal": same_prompt / n,
        "answers_equal": same_answer / n,
        "truncated": [_truncated(reference), _truncated(measured)],
        "accuracy": [_accuracy(reference, items, answer_check), _accuracy(measured, items, answer_check)],
    }
    return {**row, "differs": _differs(name, row, reference, measured)}


def _differs(name: str, row: dict[str, Any], reference: Measured, measured: Measured) -> list[str]:
    """What is not as it should be, in words, the likeliest cause first."""
    wanted = limits(name, measured.dtype)
    n = row["items"]
    reasons = []
    for expected, actual in zip(reference.questions, measured.questions, strict=True):
        if expected.prompt != actual.prompt:
            reasons.append(
                f"chat template or tokenizer: {1 - row['prompts_equal']:.0%} of the prompts are rendered "
                f"differently, the first from token {_first_difference(expected.prompt, actual.prompt)} on"
            )
            break
    if measured.ends and reference.ends != measured.ends:
        reasons.append(
            f"stop: a turn ends at the tokens {measured.ends}, with the adapter at {reference.ends}"
        )
    # With a wrong end-of-turn token none of the answers ends. Some that run on prove none where the token is
    # as likely as with the adapter: after a short training 4 of 14 did in 8 bits.
    endless_before, endless = row["truncated"]
    end_difference = row["end_logp_difference"]
    ends_alike = end_difference is not None and end_difference <= wanted.mean_logp_difference
    allowed = (n - endless_before) // 2 if ends_alike else n // 10
    if endless - endless_before > max(1, allowed):
        reasons.append(
            f"stop: {endless} of {n} answers do not end (with the adapter {endless_before}): "
            "train longer or export f16; if that does not help, look at the end-of-turn token"
        )
    if row["top_1_agreement"] < wanted.top_1_agreement:
        reasons.append(
            f"weights: the likeliest token is the same at {row['top_1_agreement']:.1%} of the positions, "
            f"{wanted.top_1_agreement:.0%} are wanted"
        )
    if row["mean_logp_difference"] > wanted.mean_logp_difference:
        reasons.append(
            f"weights: log-probabilities differ by {row['mean_logp_difference']:.3f} on average, "
            f"{wanted.mean_logp_difference} is allowed"
        )
    exact = name == "adapter" and reference.dtype == measured.dtype == "float32"
    if exact and row["answers_equal"] < ANSWERS_EQUAL:
        reasons.append(f"answers: {row['answers_equal']:.0%} are equal, {ANSWERS_EQUAL:.0%} are wanted")
    return reasons


def _first_difference(a: list[int], b: list[int]) -> int:
    """The place from which on two lists differ."""
    for at, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return at
    return min(len(a), len(b))


def _differences(expected: list[float], actual: list[float]) -> list[float]:
    """Where both are known."""
    differences = [abs(a - b) for a, b in zip(expected, actual, strict=True)]
    return [difference for difference in differences if not math.isnan(difference)]


def _truncated(measured: Measured) -> int:
    return sum(question.truncated for question in measured.questions)


def _accuracy(measured: Measured, items: list[Item], answer_check: Check | None) -> float | None:
    """The share of right answers, of the items whose answers can be checked."""
    answer_check = answer_check or Check()
    marks = []
    for question, item in zip(measured.questions, items, strict=True):
        correct = answer_check.judge(item, question.answer, question.truncated).correct
        if correct is not None:
            marks.append(correct)
    return sum(marks) / len(marks) if marks else None
