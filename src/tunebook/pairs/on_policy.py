"""Pairs out of the model's own right and wrong answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from tunebook.data.rows import images_of
from tunebook.data.similarity import words
from tunebook.generation.answers import Answer
from tunebook.generation.generate import answer_file
from tunebook.models.cpu.shared_prefixes import shared
from tunebook.pairs.pair import Pair, Sample, length_ratio, make_pair, reference
from tunebook.pairs.work import Work, checked_sample, count_verdicts, sampling_of, seed_of
from tunebook.recipe.sections import PairsConfig


def build(
    config: PairsConfig, rows: list[dict[str, Any]], samples: list[Sample], count_tokens: Callable[[str], int]
) -> list[Pair]:
    """Pairs out of checked samples (`config.samples` in turn for each row).

    A wrong sample is paired with the right one that it shares the longest beginning with: they differ where the error is, not
    in how they are told.
    """
    out = []
    for i, row in enumerate(rows):
        own = samples[i * config.samples : (i + 1) * config.samples]
        right, wrong = (
            _distinct([s for s in own if s["verdict"] == verdict]) for verdict in ("right", "wrong")
        )
        strategy = "on_policy"
        if not right and wrong and config.reference_chosen:
            right, strategy = [reference(row, count_tokens)], "reference"
        candidates = [(c, r) for c in right for r in wrong if length_ratio(c, r) <= config.max_length_ratio]
        candidates.sort(key=lambda pair: -shared(pair[0]["text"], pair[1]["text"]))
        used: set[str] = set()
        for chosen, rejected in candidates:
            if len(used) < config.per_prompt and rejected["text"] not in used:
                used.add(rejected["text"])
                out.append(make_pair(config, row, chosen, rejected, strategy))
    return out


def _distinct(samples: list[Sample]) -> list[Sample]:
    """Without those that repeat an earlier one but for layout, case or punctuation."""
    return list({" ".join(words(s["text"])): s for s in reversed(samples)}.values())[::-1]


def on_policy(work: Work) -> list[Pair]:
    """Right and wrong samples of the same prompt. A prompt always right or always wrong gives no pair (see `reference_chosen`)."""
    config = work.recipe.pairs
    flat = [(row, k) for row in work.rows for k in range(config.samples)]
    seeds = [seed_of(work, row["source_id"], str(k)) for row, k in flat]

    def record(i: int, answer: Answer) -> Sample:
        work.notice(answer)
        return checked_sample(work, flat[i][0], answer, seeds[i])

    prompts = [row["prompt"] for row, _ in flat]
    shown = [images_of(row) for row, _ in flat]
    samples = answer_file(
        work.folder / "samples.jsonl",
        work.source(),
        prompts,
        sampling_of(config, seeds),
        record,
        "sampling",
        shown,
    )
    passes = Counter(
        sum(s["verdict"] == "right" for s in samples[i : i + config.samples])
        for i in range(0, len(samples), config.samples)
    )
    work.record |= {
        "pass_counts": {str(k): passes[k] for k in range(config.samples + 1)},
        "samples": count_verdicts(samples),
    }
    found = build(config, work.rows, samples, work.count_tokens)
    paired = {p["source_id"] for p in found}
    own = [
        {s["verdict"] for s in samples[i : i + config.samples]}
        for i in range(0, len(samples), config.samples)
    ]
    fates = (
        "paired" if row["source_id"] in paired else unpaired(verdicts)
        for row, verdicts in zip(work.rows, own, strict=True)
    )
    work.record["prompts"] = dict(Counter(fates).most_common())
    return found


def unpaired(verdicts: set[str]) -> str:
    """Why samples of these verdicts gave no pair."""
    never = next((f"never {verdict}" for verdict in ("right", "wrong") if verdict not in verdicts), "")
    return "too long" if never and "too long" in verdicts else never or "lengths too far apart"
