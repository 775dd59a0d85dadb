"""Pairs out of an existing preference set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tunebook.checkers.check import Check, Judgement, other_columns
from tunebook.checkers.instructions import BadInstruction
from tunebook.data import aside, checks, contamination, files, images
from tunebook.data.checks import RowChecker
from tunebook.data.fields import MissingColumn, images_in, lower_cased, messages_of
from tunebook.data.formats import conversation, gold_of
from tunebook.data.prompts import Prompts
from tunebook.data.recognise import why_missing
from tunebook.data.records import Named, all_records, drawn, renamed
from tunebook.data.rows import Raw, Reject, Row, Unusable, images_of, rejected
from tunebook.data.storage import load
from tunebook.models import image_input
from tunebook.models.chat_template import Messages
from tunebook.pairs.forms import pair_labels, recognised, refuse_tie, with_scores
from tunebook.pairs.pair import Pair, margins, question_key
from tunebook.pairs.work import Work
from tunebook.recipe.sections import Recipe


def dataset(work: Work) -> list[Pair]:
    """The pairs of `pairs.dataset`; what cannot be used goes to `quarantine.jsonl` with the reason."""
    folder = work.folder / "images"
    checker = RowChecker(work.recipe.model, folder)
    first_ids: dict[int, str] = {}  # of what has been seen, by its hash
    end_tokens = aside.EndTokens()
    pairs = []
    for item in read(work.recipe, work.count_tokens, folder):
        if isinstance(item, Reject):
            work.rejects.append(item)
            continue
        # Counted as the trainer sees them: rendered by the chat template and with their images.
        sides = _rows(item)
        reject = _first_reject(sides, [checker.check]) or _repeated(item, sides["chosen"], first_ids)
        if reject:
            work.rejects.append(_of_pair(reject, item))
        else:
            pairs.append(item)
            end_tokens.add(sides["chosen"])
    reasons = Counter(reject.reason for reject in work.rejects)
    first = {reject.reason: reject for reject in reversed(work.rejects)}
    work.record.update(aside.record(reasons, first, end_tokens))
    if of_pairs := margins(pairs):
        work.record["margin"] = of_pairs
    return pairs


def read(recipe: Recipe, count_tokens: Callable[[str], int], folder: Path) -> Iterator[Pair | Reject]:
    """The rows of `pairs.dataset`, each as a pair or, with the reason, as a reject.

    `FORMS` has the forms that are read; `pairs.columns` is for other names. Refused are pairs that are not
    sound, and prompts of the val and test splits and of benchmarks.

    Args:
        folder: Where their images (`image` or `images`, files beside the set) are written.
    """
    config = recipe.pairs
    path = files.located(config, str(config.dataset))
    prompts = Prompts(recipe)
    check = Check(recipe.check)
    find_image = images.finder(files.image_folder(path))
    row_checks = _checks(recipe)
    named = all_records(path, config.dataset_split, "pairs.dataset")
    forms: set[str] = set()
    for source_id, raw in pair_labels(_renamed(drawn(named, config.rows, recipe.seed), config.columns)):
        if isinstance(raw, Reject):
            yield raw
            continue
        try:
            row = _plain_row(raw, str(config.dataset), forms)
            pair = _to_pair(row, prompts, config.min_margin, check, source_id)
            pair["images"] = _store_images(row, find_image, folder, recipe.data.max_image_size)
        except MissingColumn as error:
            yield Reject(source_id, *why_missing(error.name, raw, {}), raw)
            continue
        except (Unusable, image_input.BadImage) as error:
            yield Reject(source_id, error.reason, str(error), raw)
            continue
        pair["source_id"] = source_id
        # Of the answers alone: what the length of a side would give away.
        pair["chosen_tokens"] = count_tokens(pair["chosen"][0]["content"])
        pair["rejected_tokens"] = count_tokens(pair["rejected"][0]["content"])
        reject = _first_reject(_rows(pair), row_checks)
        yield _of_pair(reject, pair) if reject else pair


def _renamed(named: Named, columns: dict[str, str]) -> Named:
    for source_id, raw in named:
        yield source_id, raw if isinstance(raw, Reject) else renamed(raw, columns)


def _plain_row(raw: Raw, path: str, forms: set[str]) -> Raw:
    """A raw row with `prompt`, `chosen`, `rejected` and perhaps scores. Raises Unusable.

    Args:
        forms: The names of those recognised so far; each is said once.
    """
    row = lower_cased(raw)
    refuse_tie(row)
    form = recognised(raw)
    if form.name not in forms:
        forms.add(form.name)
        tqdm.write(f"{path}: pairs of the form {form.name}, by the columns {', '.join(form.columns)}")
    # Under its own names too: the recipe's `check` may ask for them.
    return with_scores(form.function({**raw, **row}))


def _to_pair(raw: Raw, prompts: Prompts, min_margin: float | None, check: Check, source_id: str) -> Pair:
    """A row with `prompt`, `chosen` and `rejected` as a pair. Raises Unusable that names the field."""
    prompt, chosen = side_of(raw, "chosen", prompts)
    other_prompt, rejected = side_of(raw, "rejected", prompts)
    if prompt != other_prompt:
        raise Unusable("different prompts", "chosen and rejected answer different prompts")
    if chosen[0]["content"].split() == rejected[0]["content"].split():
        raise Unusable("chosen is rejected")
    margin = _margin(raw, needed=min_margin is not None)
    gold = gold_of(raw)
    scores = f"chosen {raw.get('score_chosen')}, rejected {raw.get('score_rejected')}"
    if margin is not None and margin <= 0:
        raise Unusable("scored no better", scores)
    if margin is not None and min_margin is not None and margin < min_margin:
        raise Unusable("margin too small", scores)
    # Of a row that nothing can be said of, as one without an answer, both are None.
    row = {"source_id": source_id, "prompt": prompt, "gold": gold, "columns": other_columns(raw)}
    try:
        of_chosen = check.judge(row, chosen[0]["content"])
        of_rejected = check.judge(row, rejected[0]["content"])
    except BadInstruction as error:
        raise Unusable("unknown instruction", str(error)) from None
    _refuse_no_better(of_chosen, of_rejected, check, gold)
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "strategy": "dataset",
        "sampling": "",
        "gold": gold,
        "chosen_correct": of_chosen.correct,
        "rejected_correct": of_rejected.correct,
        "margin": margin,
    }


def _refuse_no_better(chosen: Judgement, rejected: Judgement, check: Check, gold: str | None) -> None:
    """Raises Unusable where the checker does not say that chosen is right and rejected wrong.

    Of graded scores, which may be below the threshold on both sides, the better one must be chosen.
    """
    if check.is_graded and chosen.score is not None and rejected.score is not None:
        if chosen.score <= rejected.score:
            scores = f"chosen {chosen.score:.3g}, rejected {rejected.score:.3g}"
            raise Unusable("scored no better", f"by the recipe's check: {scores}")
        return
    why = f"by the recipe's check: {check.names}" if check.config else f"the answer is {gold!r}"
    if chosen.correct is False:
        raise Unusable("chosen is wrong", why)
    if rejected.correct is True:
        raise Unusable("rejected is right", why)


def side_of(raw: Raw, side: str, prompts: Prompts) -> tuple[Messages, Messages]:
    """Prompt and completion of one side. Raises Unusable that names the field."""
    content = raw.get(side)
    row = {**raw, "messages": None, "completion": content}
    try:
        # A whole conversation; a list of texts is none.
        if isinstance(content, list) and len(content) > 1 and isinstance(content[0], dict):
            row["messages"] = _with_system_of(raw.get("prompt"), messages_of(content, side))
        return conversation(row, prompts)
    except MissingColumn as error:
        if error.name == "completion":
            raise MissingColumn(side) from None
        raise
    except Unusable as error:
        detail = str(error).replace("completion", side, 1)
        raise Unusable(error.reason, detail if detail.startswith(side) else f"{side}: {detail}") from None


def _with_system_of(prompt: Any, messages: Messages) -> Messages:
    """A side's conversation with the system message that stands in the prompt's messages alone."""
    if not isinstance(prompt, list):
        return messages
    first, *others = messages_of(prompt, "prompt", trained=False)
    if first["role"] == "system" and others == messages[:-1]:
        return [first, *messages]
    return messages


def _margin(raw: Raw, needed: bool) -> float | None:
    """By how much chosen is scored better; None where a pair has no scores.

    Raises Unusable that names the field.
    """
    scores = []
    for name in ("score_chosen", "score_rejected"):
        score = raw.get(name)
        if score is None:
            if needed:
                raise Unusable("missing column", f"{name}: missing, and pairs.min_margin is set")
            return None
        try:
            scores.append(float(score))  # a .csv file has text
        except (ValueError, TypeError, OverflowError):
            raise Unusable("wrong type", f"{name}: {str(score)[:80]!r} is not a number") from None
    margin = scores[0] - scores[1]  # of a score that is NaN or infinite it is no number
    if not math.isfinite(margin):
        raise Unusable("wrong type", "score_chosen, score_rejected: not finite")
    return margin


def _store_images(raw: Raw, find: Callable[[str], Path | bytes], folder: Path, max_size: int) -> list[str]:
    """Check the images of a raw row and write them to `folder`; returns their names. Raises BadImage."""
    names = []
    parts = images_in(raw.get("prompt"))
    for image in images.of_row({**raw, "images": parts} if parts else raw, find):
        folder.mkdir(parents=True, exist_ok=True)
        names.append(images.store(image_input.read(image, max_size), folder))
    return names


def _checks(recipe: Recipe) -> list[Callable[[Row], Reject | None]]:
    """What a side must pass before its tokens are counted."""
    # A pair about a held-out question would teach its answer.
    held_out = []
    for split in ("val", "test"):
        rows = load(recipe, split) if recipe.data.sources else []
        for row in rows:
            names = [Path(path).name for path in images_of(row)]
            held_out.append(Row(row["source_id"], "train", row["prompt"], row["completion"], images=names))
    known = contamination.Contamination(recipe.data.contamination, held_out)
    suites = [contamination.benchmarks(recipe).check, contamination.retention(recipe).check]
    return [checks.check_content, known.check, *suites]


def _rows(pair: Pair) -> dict[str, Row]:
    """The two sides of a pair as rows, which is what all checks take."""
    of_both = {"source_id": pair["source_id"], "split": "train", "prompt": pair["prompt"]}
    sides = {}
    for side in ("chosen", "rejected"):
        sides[side] = Row(**of_both, completion=pair[side], images=list(pair["images"]))
    return sides


def _first_reject(sides: dict[str, Row], row_checks: list[Callable[[Row], Reject | None]]) -> Reject | None:
    """What the checks find first, with the side that it is of."""
    for side, row in sides.items():
        for check in row_checks:
            if reject := check(row):
                reject.detail = f"{side}: {reject.detail}" if reject.detail else side
                return reject
    return None


def _of_pair(reject: Reject, pair: Pair) -> Reject:
    """With both sides in place of the one that was looked at, so that it can be put back."""
    reject.row = {"prompt": pair["prompt"], "chosen": pair["chosen"], "rejected": pair["rejected"]}
    return reject


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
