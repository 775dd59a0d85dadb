"""Pairs out of an existing preference set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunebook.checkers.maths import verify
from tunebook.data import checks, images, similarity
from tunebook.data.checks import RowChecker
from tunebook.data.formats import Prompts, conversation, gold_of
from tunebook.data.records import drawn, located, records, renamed, source_name
from tunebook.data.rows import Reject, Row, Unusable, images_of, rejected
from tunebook.data.storage import load
from tunebook.models import image_input
from tunebook.models.chat_template import Messages
from tunebook.pairs.pair import Pair, question_key
from tunebook.pairs.work import Work
from tunebook.recipe.sections import Recipe


def dataset(work: Work) -> list[Pair]:
    """The pairs of `pairs.dataset`; what cannot be used goes to `quarantine.jsonl` with the reason."""
    folder = work.folder / "images"
    checker = RowChecker(work.recipe.model, folder)
    first_ids: dict[int, str] = {}  # of what has been seen, by its hash
    pairs = []
    for item in read(work.recipe, work.count_tokens, folder):
        if isinstance(item, Reject):
            work.rejects.append(item)
            continue
        # Counted as the trainer sees them: rendered by the chat template and with their images.
        chosen, other = _rows(item)
        reject = checker.check(chosen) or checker.check(other) or _repeated(item, chosen, first_ids)
        if reject:
            work.rejects.append(reject)
        else:
            pairs.append(item)
    work.record["quarantined"] = dict(Counter(reject.reason for reject in work.rejects))
    margins = sorted(pair["margin"] for pair in pairs if pair["margin"] is not None)
    if margins:
        median = margins[len(margins) // 2]
        work.record["margin"] = {"min": margins[0], "median": median, "max": margins[-1]}
    return pairs


def read(recipe: Recipe, count_tokens: Callable[[str], int], folder: Path) -> Iterator[Pair | Reject]:
    """The rows of `pairs.dataset`, each as a pair or, with the reason, as a reject.

    UltraFeedback's form (`chosen` and `rejected` as whole conversations, `score_chosen`, `score_rejected`),
    plain text, or a message list each; `pairs.columns` for other names. Refused are pairs that are not sound,
    and prompts of the val and test splits and of benchmarks.

    Args:
        folder: Where their images (`image` or `images`, files beside the set) are written.
    """
    config = recipe.pairs
    path = located(config, str(config.dataset))
    prompts = Prompts(recipe)
    find_image = images.finder(Path(path).parent)
    row_checks = _checks(recipe)
    for number, raw in drawn(records(path, config.dataset_split, "pairs.dataset"), config.rows, recipe.seed):
        if isinstance(raw, Reject):
            yield raw
            continue
        source_id = f"{source_name(str(config.dataset), config.dataset_split)}:{number}"
        raw = renamed(raw, config.columns)
        try:
            pair = _to_pair(raw, prompts, config.min_margin)
            pair["images"] = _store_images(raw, find_image, folder, recipe.data.max_image_size)
        except (Unusable, image_input.BadImage) as error:
            yield Reject(source_id, error.reason, str(error), raw)
            continue
        except ValueError as error:
            yield Reject(source_id, "schema", str(error), raw)
            continue
        pair["source_id"] = source_id
        # Of the answers alone: what the length of a side would give away.
        pair["chosen_tokens"] = count_tokens(pair["chosen"][0]["content"])
        pair["rejected_tokens"] = count_tokens(pair["rejected"][0]["content"])
        yield _first_reject(_rows(pair), row_checks) or pair


def _to_pair(raw: dict[str, Any], prompts: Prompts, min_margin: float | None) -> Pair:
    """A raw row as a pair. Raises Unusable, and ValueError that names a field which cannot be read."""
    prompt, chosen = _side(raw, "chosen", prompts)
    other_prompt, rejected = _side(raw, "rejected", prompts)
    if prompt != other_prompt:
        raise ValueError("chosen and rejected answer different prompts")
    if chosen[0]["content"].split() == rejected[0]["content"].split():
        raise Unusable("chosen is rejected")
    margin = _margin(raw, needed=min_margin is not None)
    gold = gold_of(raw)
    scores = f"chosen {raw.get('score_chosen')}, rejected {raw.get('score_rejected')}"
    if margin is not None and margin <= 0:
        raise Unusable("scored no better", scores)
    if margin is not None and min_margin is not None and margin < min_margin:
        raise Unusable("margin too small", scores)
    # Without an answer to check against neither side can be verified.
    chosen_correct = None if gold is None else verify(chosen[0]["content"], gold).correct
    rejected_correct = None if gold is None else verify(rejected[0]["content"], gold).correct
    if chosen_correct is False:
        raise Unusable("chosen is wrong", f"the answer is {gold!r}")
    if rejected_correct is True:
        raise Unusable("rejected is right", f"the answer is {gold!r}")
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "strategy": "dataset",
        "sampling": "",
        "gold": gold,
        "chosen_correct": chosen_correct,
        "rejected_correct": rejected_correct,
        "margin": margin,
    }


def _side(raw: dict[str, Any], side: str, prompts: Prompts) -> tuple[Messages, Messages]:
    """Prompt and completion of one side. Raises ValueError that names the field."""
    content = raw.get(side)
    row = {"prompt": raw.get("prompt"), "completion": content, "system": raw.get("system")}
    if isinstance(content, list) and len(content) > 1:  # a whole conversation
        row["messages"] = content
    try:
        return conversation(row, prompts)
    except ValueError as error:
        raise ValueError(f"{side}: {error}") from None


def _margin(raw: dict[str, Any], needed: bool) -> float | None:
    """By how much chosen is scored better; None where a pair has no scores.

    Raises ValueError that names the field.
    """
    scores = []
    for name in ("score_chosen", "score_rejected"):
        score = raw.get(name)
        if score is None:
            if needed:
                raise ValueError(f"{name}: missing, and pairs.min_margin is set")
            return None
        try:
            scores.append(float(score))  # a .csv file has text
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"{name}: {str(score)[:80]!r} is not a number") from None
    margin = scores[0] - scores[1]  # of a score that is NaN or infinite it is no number
    if not math.isfinite(margin):
        raise ValueError("score_chosen, score_rejected: not finite")
    return margin


def _store_images(
    raw: dict[str, Any], find: Callable[[str], Path | bytes], folder: Path, max_size: int
) -> list[str]:
    """Check the images of a raw row and write them to `folder`; returns their names. Raises BadImage."""
    names = []
    for image in images.of_row(raw, find):
        folder.mkdir(parents=True, exist_ok=True)
        names.append(images.store(image_input.read(image, max_size), folder))
    return names


def _checks(recipe: Recipe) -> list[Callable[[Row], Reject | None]]:
    """What a side must pass before its tokens are counted."""
    # A pair about a held-out question would teach its answer.
    held_out = []
    for split in ("val", "test"):
        for row in load(recipe, split):
            names = [Path(path).name for path in images_of(row)]
            held_out.append(Row(row["source_id"], "train", row["prompt"], row["completion"], images=names))
    contamination = similarity.Contamination(recipe.data.contamination, held_out)
    return [checks.check_content, contamination.check, similarity.benchmarks(recipe).check]


def _rows(pair: Pair) -> tuple[Row, Row]:
    """The two sides of a pair as rows, which is what all checks take."""
    of_both = {"source_id": pair["source_id"], "split": "train", "prompt": pair["prompt"]}
    chosen = Row(**of_both, completion=pair["chosen"], images=list(pair["images"]))
    return chosen, Row(**of_both, completion=pair["rejected"], images=list(pair["images"]))


def _first_reject(sides: tuple[Row, Row], row_checks: list[Callable[[Row], Reject | None]]) -> Reject | None:
    for row in sides:
        for check in row_checks:
            if reject := check(row):
                return reject
    return None


def _repeated(pair: Pair, chosen: Row, first_ids: dict[int, str]) -> Reject | None:
    """Reject a pair that asks the same and has both sides the same, but for layout; else remember it.

    A prompt may have several pairs.
    """
    texts = [question_key(pair)]
    for message in [*pair["prompt"], *pair["chosen"], *pair["rejected"]]:
        if message["role"] != "user":
            texts.append(" ".join(message["content"].split()))
    # A hash: the texts of a large set would not fit in memory twice.
    first_id = first_ids.setdefault(hash(tuple(texts)), pair["source_id"])
    if first_id == pair["source_id"]:
        return None
    return rejected(chosen, "duplicate", f"of {first_id}")
