"""Pairs of a reference solution and one with a flaw that a model was asked for."""

from __future__ import annotations

import random
import re
from collections import Counter

from tunebook.data.rows import images_of
from tunebook.data.similarity import words
from tunebook.generation.answers import Answer
from tunebook.generation.generate import answer_file
from tunebook.pairs.pair import Pair, Sample, length_ratio, make_pair, reference
from tunebook.pairs.work import Work, checked_sample, count_verdicts, sampling_of, seed_of
from tunebook.recipe.files import find_file, read_text


def injected_error(work: Work) -> list[Pair]:
    """The model (or a server) is asked for a solution with one kind of flaw; chosen is the reference solution.

    Kept are those that really end wrong; a `process_error` is kept with either answer.
    """
    config = work.recipe.pairs
    drawn = []
    for row in work.rows:
        rng = random.Random(f"{work.recipe.seed}/{work.number}/{row['source_id']}")  # noqa: S311 - seeded, no secret
        drawn.append(rng.choice(config.strategies))
    texts = {s: read_text(find_file(f"prompt/{s}.txt")) for s in config.strategies}
    prompts, seeds = [], [seed_of(work, row["source_id"], "error") for row in work.rows]
    for row, strategy in zip(work.rows, drawn, strict=True):
        parts = {"{question}": row["prompt"][-1]["content"], "{solution}": row["completion"][0]["content"]}
        prompts.append([{"role": "user", "content": _fill(texts[strategy], parts)}])

    def record(i: int, answer: Answer) -> Sample:
        work.notice(answer)
        return {"strategy": drawn[i]} | checked_sample(work, work.rows[i], answer, seeds[i])

    shown = [images_of(row) for row in work.rows]
    samples = answer_file(
        work.folder / "errors.jsonl",
        work.source(),
        prompts,
        sampling_of(config, seeds),
        record,
        "writing errors",
        shown,
    )
    work.record["errors"] = count_verdicts(samples)
    out, fates = [], Counter[str]()
    for row, sample, strategy in zip(work.rows, samples, drawn, strict=True):
        chosen = reference(row, work.count_tokens)
        if sample["verdict"] != "wrong" and not (
            sample["verdict"] == "right" and strategy == "process_error"
        ):
            fates[sample["verdict"]] += 1
        elif words(sample["text"]) == words(chosen["text"]):
            fates["the same text"] += 1
        elif length_ratio(chosen, sample) > config.max_length_ratio:
            fates["lengths too far apart"] += 1
        else:
            fates["paired"] += 1
            out.append(make_pair(config, row, chosen, sample, strategy))
    work.record["error_prompts"] = dict(fates.most_common())
    return out


def _fill(template: str, parts: dict[str, str]) -> str:
    """All at once, so that a question which holds `{solution}` stays as it is."""
    return re.sub("|".join(map(re.escape, parts)), lambda m: parts[m[0]], template).strip()
