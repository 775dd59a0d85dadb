"""Pairs out of the model's own right and wrong answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from tunebook.checkers.check import Check
from tunebook.checkers.maths import equal, verify
from tunebook.models.prefix import common_start
from tunebook.pairs.first_pit import first_pit_pairs
from tunebook.pairs.judged import rank
from tunebook.pairs.pair import (
    Pair,
    Sample,
    content_of,
    distinct,
    length_ratio,
    make_pair,
    margins,
    reference,
)
from tunebook.pairs.work import Request, Work, count_verdicts
from tunebook.recipe.sections import PairsConfig

JUDGED_MARGIN = 0.5
"""Of the comparisons with a prompt's other samples: by how much more of them chosen wins, where no
`pairs.min_margin` is given."""


def on_policy(work: Work) -> list[Pair]:
    """Several samples of each prompt: chosen is one that is right, rejected one that is wrong.

    With a `check` and `pairs.min_margin`, or a judge, chosen is one whose score is better by as much. A
    prompt whose samples are all right, or all wrong, gives no pair (but see `pairs.reference_chosen`).
    """
    config = work.recipe.pairs
    requests = []
    for row in work.rows:
        for k in range(config.samples):
            requests.append(Request(row, row["prompt"], work.seed(row, str(k))))
    samples = work.answer("samples.jsonl", requests, "sampling")
    if work.judge:
        rank(work, work.judge, samples, config.samples)
    by_margin = least_margin(config, work.check, samples) is not None
    pits = first_pit_pairs(work, samples, config.first_pit) if config.first_pit else None
    # How many prompts had 0, 1, 2, ... right samples, and how many have a pair, or why not.
    pairs = []
    right_counts = Counter[int]()
    outcomes = Counter[str]()
    for i, row in enumerate(work.rows):
        of_row = samples[i * config.samples : (i + 1) * config.samples]
        if pits is None:
            row_pairs = pairs_of_row(config, row, of_row, work.count_tokens, work.check)
        else:
            row_pairs = pits[i]
        pairs += row_pairs
        verdicts = [sample["verdict"] for sample in of_row]
        right_counts[verdicts.count("right")] += 1
        outcomes["paired" if row_pairs else why_unpaired(verdicts, by_margin)] += 1
    if not work.judge:
        work.record["pass_counts"] = {str(k): right_counts[k] for k in range(config.samples + 1)}
    work.record["samples"] = count_verdicts(samples)
    work.record["prompts"] = dict(outcomes.most_common())
    if pairs and (work.check.is_graded or work.judge):
        work.record["margin"] = margins(pairs)
    return pairs


def least_margin(config: PairsConfig, check: Check | None, samples: list[Sample]) -> float | None:
    """The least difference of two samples' scores that makes a pair; None: right against wrong."""
    if any(sample["verdict"] == "judged" for sample in samples):
        return config.min_margin or JUDGED_MARGIN
    return config.min_margin if check and check.config else None


def pairs_of_row(
    config: PairsConfig,
    row: dict[str, Any],
    samples: list[Sample],
    count_tokens: Callable[[str], int],
    check: Check | None = None,
) -> list[Pair]:
    """At most `config.per_prompt` pairs out of a row's checked samples.

    A wrong sample is paired with the right one that it shares the longest beginning with: they differ where
    the error is, not in how they are told. With `pairs.rejected: most_frequent` the wrong answer that is
    given most often comes first. Of scored samples the pairs with the greatest margin come first.
    """
    strategy = "on_policy"
    # By margin any sample with a score can be either side; else right against wrong.
    least = least_margin(config, check, samples)
    if least is not None:
        better = worse = distinct(samples, ("right", "wrong", "judged"))
    else:
        better = distinct(samples, ("right",))
        worse = distinct(samples, ("wrong",))
    has_right = any(sample["verdict"] in ("right", "judged") for sample in samples)
    if worse and config.reference_chosen and row["completion"] and not has_right:
        better = [reference(row, count_tokens, check)]
        strategy = "reference"
    # Of answers of very different length DPO would learn the length.
    candidates = []
    for chosen in better:
        for rejected in worse:
            is_apart = _margin((chosen, rejected)) >= (least or 0.0) - 1e-9
            if is_apart and length_ratio(chosen, rejected) <= config.max_length_ratio:
                candidates.append((chosen, rejected))
    candidates.sort(key=_common_beginning, reverse=True)
    if config.rejected == "most_frequent":
        counts = frequencies(samples, row, check)
        candidates.sort(key=lambda candidate: counts.get(candidate[1]["text"], 0), reverse=True)
    if least:
        candidates.sort(key=_margin, reverse=True)
    pairs: list[Pair] = []
    used = set()  # each pair of a prompt has another rejected text
    for chosen, rejected in candidates:
        if len(pairs) < config.per_prompt and rejected["text"] not in used:
            used.add(rejected["text"])
            pairs.append(make_pair(config, row, chosen, rejected, strategy))
    return pairs


def frequencies(samples: list[Sample], row: dict[str, Any], check: Check | None) -> dict[str, int]:
    """How often the answer of each wrong sample is given, by the sample's text.

    In maths, answers are the same whose final ones are equal; else those that say the same.
    """
    votes = Counter[str]()
    answers = {}
    for sample in samples:
        if sample["verdict"] != "wrong":
            continue
        answer = content_of(sample)
        if check is None or check.config is None:
            final = verify(sample["text"], row["gold"], boxed_only=True).parsed or ""
            # 0.5 and 1/2 are one answer.
            answer = next((known for known in votes if equal(known, final)), final)
        votes[answer] += 1
        answers[sample["text"]] = answer
    return {text: votes[answer] for text, answer in answers.items()}


def why_unpaired(verdicts: list[str], by_margin: bool = False) -> str:
    """Why samples of these verdicts gave no pair, of right and wrong ones or of any scores."""
    scored = [verdict for verdict in verdicts if verdict in ("right", "wrong", "judged")]
    if by_margin and len(scored) > 1:
        return "scores or lengths do not fit"
    for side in ("right", "wrong"):
        if side not in verdicts:
            return "too long" if "too long" in verdicts else f"never {side}"
    return "lengths too far apart"


def _margin(candidate: tuple[Sample, Sample]) -> float:
    """By how much chosen is scored better; 0 where samples are right or wrong alone."""
    chosen, rejected = candidate
    if chosen.get("score") is None or rejected.get("score") is None:
        return 0.0
    return float(chosen["score"] - rejected["score"])


def _common_beginning(candidate: tuple[Sample, Sample]) -> int:
    chosen, rejected = candidate
    return common_start(chosen["text"], rejected["text"])
