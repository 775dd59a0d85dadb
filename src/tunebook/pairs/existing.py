"""Pairs out of an existing preference set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunebook.checkers.maths import verify
from tunebook.data import checks, images, rows, similarity
from tunebook.data.formats import Prompts, conversation, gold_of
from tunebook.data.records import drawn, is_file, records, renamed, source_name
from tunebook.data.rows import Reject, Row, images_of
from tunebook.data.similarity import words
from tunebook.data.storage import load
from tunebook.data.tokens import count_and_check
from tunebook.models import image_input
from tunebook.models.chat_template import Messages
from tunebook.models.tokenizer import image_counter
from tunebook.pairs.pair import Pair
from tunebook.pairs.work import Work
from tunebook.recipe.files import find_file
from tunebook.recipe.sections import Recipe


def read(
    recipe: Recipe, count_tokens: Callable[[str], int], folder: Path, *further: Callable[[Row], Reject | None]
) -> Iterator[Pair | Reject]:
    """The rows of `pairs.dataset`, each as a pair or, with the reason, as a reject.

    UltraFeedback's form (`chosen` and `rejected` as whole conversations, `score_chosen`, `score_rejected`), plain text, or a
    message list each; `pairs.columns` for other names. Their images (`image` or `images`, files beside it) are checked and written to
    `folder`. A pair without an `answer` cannot be verified: its `chosen_correct` and `rejected_correct` are None. Prompts of the val
    and test splits, items of benchmarks, and what `further` checks reject are refused, and a pair that repeats: a prompt may have
    several pairs.
    """
    config = recipe.pairs
    prompts = Prompts(recipe)
    held_out = [
        _row(r["source_id"], r["prompt"], r["completion"], images_of(r))
        for split in ("val", "test")
        for r in load(recipe, split)
    ]
    contamination = similarity.Contamination(recipe.data.contamination, held_out)
    benchmarks, seen = similarity.benchmarks(recipe), dict[int, str]()
    path = str(config.dataset)
    find, counters = (
        images.finder((find_file(path) if is_file(path) else Path(path)).parent),
        list[image_input.TokenCounter](),
    )

    def keep(raw: dict[str, Any]) -> list[str]:
        given = images.of_row(raw, find)
        if given and not counters:
            folder.mkdir(parents=True, exist_ok=True)
            counters.append(image_counter(recipe.model))
        return [images.store(image_input.read(image, recipe.data.max_image_size), folder) for image in given]

    for number, raw in drawn(records(path, config.dataset_split, "pairs.dataset"), config.rows, recipe.seed):
        source_id = f"{source_name(path, config.dataset_split)}:{number}"
        found = (
            raw
            if isinstance(raw, Reject)
            else _existing(
                source_id, renamed(raw, config.columns), prompts, count_tokens, config.min_margin, keep
            )
        )
        if isinstance(found, dict):
            shown = found["images"]
            asked = count_tokens("\n".join(m["content"] for m in found["prompt"])) + sum(
                c.added(folder / name for name in shown) for c in counters
            )
            sides = [
                _row(source_id, found["prompt"], found[side], shown, asked + found[f"{side}_tokens"])
                for side in ("chosen", "rejected")
            ]
            each = (checks.check_content, contamination.check, benchmarks.check, *further)
            found = (
                next((r for row in sides for check in each if (r := check(row))), None)
                or checks.check_length(max(sides, key=lambda row: row.tokens), recipe.model.max_seq_length)
                or _repeated(sides[0], found, seen)
                or found
            )
        yield found


def asked(pair: Pair) -> str:
    """What a pair's prompt asks, but for layout, case and punctuation: the same for all pairs of a prompt."""
    text = "\n".join(m["content"] for m in pair["prompt"] if m["role"] != "system")
    return " ".join([*words(text), *pair["images"]])


def _repeated(row: Row, pair: Pair, seen: dict[int, str]) -> Reject | None:
    """Reject a pair that asks the same and has both sides the same, else remember it."""
    texts = [
        m["content"].split()
        for m in [*pair["prompt"], *pair["chosen"], *pair["rejected"]]
        if m["role"] != "user"
    ]
    first = seen.setdefault(hash((asked(pair), *map(" ".join, texts))), row.source_id)
    return None if first == row.source_id else rows.rejected(row, "duplicate", f"of {first}")


def _existing(
    source_id: str,
    raw: dict[str, Any],
    prompts: Prompts,
    count_tokens: Callable[[str], int],
    min_margin: float | None,
    keep: Callable[[dict[str, Any]], list[str]],
) -> Pair | Reject:
    sides: list[tuple[Messages, Messages]] = []
    for side in ("chosen", "rejected"):
        whole = isinstance(raw.get(side), list) and len(raw[side]) > 1
        one = {"messages": raw[side]} if whole else {"prompt": raw.get("prompt"), "completion": raw.get(side)}
        try:
            sides.append(conversation(one | {"system": raw.get("system")}, prompts))
        except ValueError as error:
            return Reject(source_id, "schema", f"{side}: {error}", raw)
    (prompt, chosen), (other, rejected) = sides
    if prompt != other:
        return Reject(source_id, "schema", "chosen and rejected answer different prompts", raw)
    if chosen[0]["content"].split() == rejected[0]["content"].split():
        return Reject(source_id, "chosen is rejected", "", raw)
    try:
        margin, gold = _margin(raw, min_margin is not None), gold_of(raw)
    except ValueError as error:
        return Reject(source_id, "schema", str(error), raw)
    if margin is not None and (margin <= 0 or margin < (min_margin or 0)):
        reason = "scored no better" if margin <= 0 else "margin too small"
        return Reject(
            source_id, reason, f"chosen {raw['score_chosen']}, rejected {raw['score_rejected']}", raw
        )
    right = [
        None if gold is None else verify(side[0]["content"], gold).correct for side in (chosen, rejected)
    ]
    if right[0] is False or right[1] is True:
        return Reject(
            source_id,
            "chosen is wrong" if right[0] is False else "rejected is right",
            f"the answer is {gold!r}",
            raw,
        )
    try:
        shown = keep(raw)
    except image_input.BadImage as error:
        return Reject(source_id, error.reason, str(error), raw)
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "source_id": source_id,
        "strategy": "dataset",
        "gold": gold,
        "chosen_correct": right[0],
        "rejected_correct": right[1],
        "chosen_tokens": count_tokens(chosen[0]["content"]),
        "rejected_tokens": count_tokens(rejected[0]["content"]),
        "sampling": "",
        "images": shown,
        "margin": margin,
    }


def _margin(raw: dict[str, Any], needed: bool) -> float | None:
    """By how much chosen is scored better; None where a pair has no scores. Raises ValueError that names the field."""
    scores = []
    for name in ("score_chosen", "score_rejected"):
        if raw.get(name) is None:
            if needed:
                raise ValueError(f"{name}: missing, and pairs.min_margin is set")
            return None
        try:
            scores.append(float(raw[name]))
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"{name}: {str(raw[name])[:80]!r} is not a number") from None
    if not math.isfinite(margin := scores[0] - scores[1]):
        raise ValueError("score_chosen, score_rejected: not finite")
    return margin


def _row(source_id: str, prompt: Messages, completion: Messages, shown: list[str], tokens: int = 0) -> Row:
    return Row(
        source_id, "train", prompt, completion, images=[Path(path).name for path in shown], tokens=tokens
    )


def dataset(work: Work) -> list[Pair]:
    """An existing preference set; what cannot be used goes to `quarantine.jsonl` with the reason."""
    items = list(read(work.recipe, work.count_tokens, work.folder / "images", work.control))
    sound = [p for p in items if not isinstance(p, Reject)]
    # As the trainer sees them: `read` counts text without the chat template.
    sides = (
        Row(p["source_id"], "train", p["prompt"], p[side], images=p["images"])
        for p in sound
        for side in ("chosen", "rejected")
    )
    looked = iter(count_and_check(sides, work.recipe.model, work.folder / "images"))
    verdicts = [
        next((side for side in both if isinstance(side, Reject)), None)
        for both in zip(looked, looked, strict=True)
    ]
    work.rejects += [r for r in [*items, *verdicts] if isinstance(r, Reject)]
    work.record["quarantined"] = dict(Counter(r.reason for r in work.rejects))
    found = [p for p, reject in zip(sound, verdicts, strict=True) if reject is None]
    if margins := sorted(p["margin"] for p in found if p["margin"] is not None):
        work.record["margin"] = {"min": margins[0], "median": margins[len(margins) // 2], "max": margins[-1]}
    return found
