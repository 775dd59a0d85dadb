"""Is an export the same model as the adapter? Loaded from disk in a fresh process and compared.

Compared are the prompts as the export's own chat template renders them, the log-probability of each token of
the adapter's own greedy answers (teacher forcing), and the export's own greedy answers: where they stop and
whether they are right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tunebook.checkers.check import Check
from tunebook.evaluation.items import Item
from tunebook.export.measure import Measured, measure_folder, measure_gguf


class Limits(NamedTuple):
    """What counts as equal."""

    top_1_agreement: float
    """Positions at which the likeliest token is the same, at least."""
    mean_logp_difference: float
    """Of a token's log-probability, at most."""
    answers_equal: float
    """Greedy answers that are the same text, at least."""


# An adapter is the same numbers on the same base; merged weights are rounded to 16 bits, those of q8_0 to 8.
LIMITS = {
    "adapter": Limits(0.99, 0.01, 0.95),
    "merged": Limits(0.98, 0.02, 0.9),
    "f32": Limits(0.98, 0.02, 0.9),
    "f16": Limits(0.98, 0.02, 0.9),
    "bf16": Limits(0.98, 0.02, 0.9),
    "q8_0": Limits(0.95, 0.05, 0.7),
}

LOSSY = Limits(0.7, 1.0, 0.0)
"""For the smaller quantisations, which do answer differently: the table tells what they lose."""


def check(
    export: Path,
    name: str,
    reference: Measured,
    items: list[Item],
    max_new_tokens: int,
    answer_check: Check | None = None,
) -> dict[str, Any]:
    """Load an export afresh and compare it with `reference`.

    Returns a row of the parity table, its `differs` empty when all is well.
    """
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
    same_top = same_prompt = same_answer = 0
    for expected, actual in zip(reference.questions, measured.questions, strict=True):
        logps += _differences(expected.logps, actual.logps)
        if actual.logits:
            logits += _differences(expected.logits, actual.logits)
        same_top += sum(a == b for a, b in zip(expected.top, actual.top, strict=True))
        same_prompt += expected.prompt == actual.prompt
        same_answer += expected.answer == actual.answer
    n = len(reference.questions)
    row = {
        "items": n,
        "positions": len(logps),
        "top_1_agreement": same_top / len(logps),
        "mean_logp_difference": sum(logps) / len(logps),
        "max_logp_difference": max(logps),
        "max_logit_difference": max(logits, default=None),
        "prompts_equal": same_prompt / n,
        "answers_equal": same_answer / n,
        "truncated": [_truncated(reference), _truncated(measured)],
        "accuracy": [_accuracy(reference, items, answer_check), _accuracy(measured, items, answer_check)],
    }
    return {**row, "differs": _differs(name, row, reference, measured)}


def _differs(name: str, row: dict[str, Any], reference: Measured, measured: Measured) -> list[str]:
    """What is not as it should be, in words, the likeliest cause first."""
    limits = LIMITS.get(name, LOSSY)
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
    # One or two answers that end in another place are chance; many are a wrong end-of-turn token.
    endless_before, endless = row["truncated"]
    if endless - endless_before > max(1, n // 10):
        reasons.append(
            f"stop: {endless} of {n} answers do not end (with the adapter {endless_before}): "
            "look at the end-of-turn token"
        )
    if row["top_1_agreement"] < limits.top_1_agreement:
        reasons.append(
            f"weights: the likeliest token is the same at {row['top_1_agreement']:.1%} of the positions, "
            f"{limits.top_1_agreement:.0%} are wanted"
        )
    if row["mean_logp_difference"] > limits.mean_logp_difference:
        reasons.append(
            f"weights: log-probabilities differ by {row['mean_logp_difference']:.3f} on average, "
            f"{limits.mean_logp_difference} is allowed"
        )
    if row["answers_equal"] < limits.answers_equal:
        reasons.append(
            f"answers: {row['answers_equal']:.0%} are equal, {limits.answers_equal:.0%} are wanted"
        )
    return reasons


def _first_difference(a: list[int], b: list[int]) -> int:
    """The place from which on two lists differ."""
    for at, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return at
    return min(len(a), len(b))


def _differences(expected: list[float], actual: list[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(expected, actual, strict=True)]


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
