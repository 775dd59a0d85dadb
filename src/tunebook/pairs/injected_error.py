"""Pairs of a reference solution and one with a flaw that a model was asked for."""

from __future__ import annotations

import random
from collections import Counter

from tunebook.generation.answers import fill
from tunebook.pairs.pair import Pair, Sample, content_of, length_ratio, make_pair, reference
from tunebook.pairs.work import Request, Work, count_verdicts
from tunebook.recipe.files import read_text
from tunebook.recipe.sections import PairsConfig


def injected_error(work: Work) -> list[Pair]:
    """The model (or a server) is asked for a solution with one kind of flaw; chosen is the reference.

    Kept are those that really end wrong; a `process_error` is kept with either answer.
    """
    config = work.recipe.pairs
    templates = {}
    for strategy in config.strategies:
        templates[strategy] = read_text(config.find_file(f"prompt/{strategy}.txt"))
    # A prompt without a solution has nothing to put an error into.
    rows = [row for row in work.rows if row["completion"]]
    requests = []
    for row in rows:
        # The row and the round decide, so that other rows may come or go.
        rng = random.Random(f"{work.recipe.seed}/{work.number}/{row['source_id']}")  # noqa: S311 - no secret
        strategy = rng.choice(config.strategies)
        question = row["prompt"][-1]["content"]
        parts = {"{question}": question, "{solution}": row["completion"][0]["content"]}
        prompt = [{"role": "user", "content": fill(templates[strategy], parts).strip()}]
        requests.append(Request(row, prompt, work.seed(row, "error"), {"strategy": strategy}))
    samples = work.answer("errors.jsonl", requests, "writing errors")
    pairs = []
    outcomes = Counter[str]()
    for row, sample in zip(rows, samples, strict=True):
        chosen = reference(row, work.count_tokens, work.check)
        outcome = _outcome(config, chosen, sample)
        outcomes[outcome] += 1
        if outcome == "paired":
            pairs.append(make_pair(config, row, chosen, sample, sample["strategy"]))
    work.record["errors"] = count_verdicts(samples)
    work.record["error_prompts"] = dict(outcomes.most_common())
    return pairs


def _outcome(config: PairsConfig, chosen: Sample, rejected: Sample) -> str:
    """`paired`, or why a sample is no pair with the reference solution."""
    verdict = str(rejected["verdict"])
    # A process error goes wrong on the way and may still end right.
    wrong_on_the_way = verdict == "right" and rejected["strategy"] == "process_error"
    if verdict != "wrong" and not wrong_on_the_way:
        return verdict
    # Some models give the solution back as it is.
    if content_of(rejected) == content_of(chosen):
        return "the same text"
    if length_ratio(chosen, rejected) > config.max_length_ratio:
        return "lengths too far apart"
    return "paired"
