"""Preference pairs: out of checked samples or an existing set, and what gives their sides away.

A pair is a row with `prompt`, `chosen`, `rejected` (lists of messages) and columns that say where it comes from and what was
checked. A sample is a dict with `text`, `tokens`, `seed` and its `verdict`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from tunebook.data import checks, images
from tunebook.data.checks import NOT_AN_ANSWER, words
from tunebook.data.prepare import load
from tunebook.data.records import drawn, is_file, records, renamed, source_name
from tunebook.data.rows import Messages, Reject, Row, images_of
from tunebook.data.sources import Prompts, conversation, gold_of
from tunebook.data.tokens import image_counter
from tunebook.recipe import PairsConfig, Recipe, find_file
from tunebook.sharing import shared
from tunebook.verify import verify

Sample = dict[str, Any]
Pair = dict[str, Any]
COLUMNS = dict.fromkeys(("prompt", "chosen", "rejected"), "messages") | dict.fromkeys(("source_id", "strategy", "gold", "sampling"), "string")
COLUMNS |= {"chosen_correct": "bool", "rejected_correct": "bool", "chosen_tokens": "int32", "rejected_tokens": "int32", "margin": "float32"}


def build(config: PairsConfig, rows: list[dict[str, Any]], samples: list[Sample], count_tokens: Callable[[str], int]) -> list[Pair]:
    """Pairs out of checked samples (`config.samples` in turn for each row).

    A wrong sample is paired with the right one that it shares the longest beginning with: they differ where the error is, not
    in how they are told.
    """
    out = []
    for i, row in enumerate(rows):
        own = samples[i * config.samples : (i + 1) * config.samples]
        right, wrong = (_distinct([s for s in own if s["verdict"] == verdict]) for verdict in ("right", "wrong"))
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


def check_sample(text: str, gold: str, truncated: bool, like: str) -> Literal["right", "wrong", "broken"]:
    """Whether an answer can be chosen (`right`) or rejected (`wrong`); one that is cut off, empty, an error text, unboxed, or
    not in the format of the solution `like` (its last heading) can be neither."""
    verdict = verify(text, gold, boxed_only=True)
    boxed = verdict.how == "boxed" and bool((verdict.parsed or "").strip())
    if truncated or not boxed or NOT_AN_ANSWER.search(text) or _last_heading(text) != _last_heading(like):
        return "broken"
    return "right" if verdict.correct else "wrong"


def reference(row: dict[str, Any], count_tokens: Callable[[str], int]) -> Sample:
    """A row's own solution in the place of a sample."""
    text = row["completion"][0]["content"]
    return {"text": text, "tokens": count_tokens(text), "seed": None}


FORMAT: dict[str, Callable[[str], float]] = {
    "lines": lambda text: text.count("\n"),
    "headings": lambda text: len(re.findall(r"^(?:#+ |\*\*)", text, re.M)),
    "numbered steps": lambda text: len(re.findall(r"^\s*\d+[.)] ", text, re.M)),
    "boxes": lambda text: text.count("\\boxed"),
    "LaTeX commands": lambda text: len(re.findall(r"\\[a-zA-Z]+", text)),
    "digits": lambda text: sum(c.isdigit() for c in text),
    "punctuation": lambda text: sum(not c.isalnum() and not c.isspace() for c in text),
}
"""What a text looks like, whatever it says."""


def told_apart(values: list[tuple[float, float]]) -> float:
    """How often "the smaller (or the larger) one is chosen" is right of (chosen, rejected) values, whichever is better; ties
    count half. 0.5 is healthy; near 1 the pairs teach this value and little else."""
    smaller = sum((c < r) + 0.5 * (c == r) for c, r in values) / len(values)
    return max(smaller, 1 - smaller)


def format_only(found: list[Pair]) -> dict[str, float]:
    """`told_apart` for each trait of `FORMAT`, the most telling first."""
    texts = [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in found]
    told = {name: told_apart([(f(c), f(r)) for c, r in texts]) for name, f in FORMAT.items()}
    return dict(sorted(told.items(), key=lambda item: -item[1]))


def marked(pair: Pair) -> list[tuple[str, bool]]:
    """The rejected text in parts, each with whether chosen lacks it: whole words, numbers and signs."""
    chosen, rejected = (re.findall(r"\w+|\s+|.", pair[side][0]["content"]) for side in ("chosen", "rejected"))
    codes = difflib.SequenceMatcher(None, chosen, rejected, autojunk=False).get_opcodes()
    return [("".join(rejected[start:end]), kind != "equal") for kind, _, _, start, end in codes if end > start]


def read(recipe: Recipe, count_tokens: Callable[[str], int], folder: Path, *further: Callable[[Row], Reject | None]) -> Iterator[Pair | Reject]:
    """The rows of `pairs.dataset`, each as a pair or, with the reason, as a reject.

    UltraFeedback's form (`chosen` and `rejected` as whole conversations, `score_chosen`, `score_rejected`), plain text, or a
    message list each; `pairs.columns` for other names. Their images (`image` or `images`, files beside it) are checked and written to
    `folder`. A pair without an `answer` cannot be verified: its `chosen_correct` and `rejected_correct` are None. Prompts of the val
    and test splits, items of benchmarks, and what `further` checks reject are refused, and a pair that repeats: a prompt may have
    several pairs.
    """
    config = recipe.pairs
    prompts = Prompts(recipe)
    held_out = [_row(r["source_id"], r["prompt"], r["completion"], images_of(r)) for split in ("val", "test") for r in load(recipe, split)]
    contamination = checks.Contamination(recipe.data.contamination, held_out)
    benchmarks, seen = checks.benchmarks(recipe), dict[int, str]()
    path = str(config.dataset)
    find, counters = images.finder((find_file(path) if is_file(path) else Path(path)).parent), list[images.TokenCounter]()

    def keep(raw: dict[str, Any]) -> list[str]:
        given = images.of_row(raw, find)
        if given and not counters:
            folder.mkdir(parents=True, exist_ok=True)
            counters.append(image_counter(recipe.model))
        return [images.store(images.read(image, recipe.data.max_image_size), folder) for image in given]

    for number, raw in drawn(records(path, config.dataset_split, "pairs.dataset"), config.rows, recipe.seed):
        source_id = f"{source_name(path, config.dataset_split)}:{number}"
        found = raw if isinstance(raw, Reject) else _existing(source_id, renamed(raw, config.columns), prompts, count_tokens, config.min_margin, keep)
        if isinstance(found, dict):
            shown = found["images"]
            asked = count_tokens("\n".join(m["content"] for m in found["prompt"])) + sum(c.added(folder / name for name in shown) for c in counters)
            sides = [_row(source_id, found["prompt"], found[side], shown, asked + found[f"{side}_tokens"]) for side in ("chosen", "rejected")]
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
    texts = [m["content"].split() for m in [*pair["prompt"], *pair["chosen"], *pair["rejected"]] if m["role"] != "user"]
    first = seen.setdefault(hash((asked(pair), *map(" ".join, texts))), row.source_id)
    return None if first == row.source_id else checks.rejected(row, "duplicate", f"of {first}")


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
        return Reject(source_id, reason, f"chosen {raw['score_chosen']}, rejected {raw['score_rejected']}", raw)
    right = [None if gold is None else verify(side[0]["content"], gold).correct for side in (chosen, rejected)]
    if right[0] is False or right[1] is True:
        return Reject(source_id, "chosen is wrong" if right[0] is False else "rejected is right", f"the answer is {gold!r}", raw)
    try:
        shown = keep(raw)
    except images.BadImage as error:
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
    return Row(source_id, "train", prompt, completion, images=[Path(path).name for path in shown], tokens=tokens)


def make_pair(config: PairsConfig, row: dict[str, Any], chosen: Sample, rejected: Sample, strategy: str) -> Pair:
    pair = {"prompt": row["prompt"], "source_id": row["source_id"], "strategy": strategy, "gold": row["gold"], "margin": None}
    pair["images"] = [Path(path).name for path in images_of(row)]
    for side, sample in (("chosen", chosen), ("rejected", rejected)):
        pair[side] = [{"role": "assistant", "content": sample["text"]}]
        pair[f"{side}_correct"] = verify(sample["text"], row["gold"], boxed_only=True).correct
        pair[f"{side}_tokens"] = sample["tokens"]
    how = config.model_dump(include={"temperature", "max_new_tokens"}) | {"model": config.server.model if config.server else "policy"}
    return pair | {"sampling": json.dumps(how | {"chosen_seed": chosen["seed"], "rejected_seed": rejected["seed"]})}


def _distinct(samples: list[Sample]) -> list[Sample]:
    """Without those that repeat an earlier one but for layout, case or punctuation."""
    return list({" ".join(words(s["text"])): s for s in reversed(samples)}.values())[::-1]


def length_ratio(a: Sample, b: Sample) -> float:
    return float(max(a["tokens"], b["tokens"]) / max(1, min(a["tokens"], b["tokens"])))


def _last_heading(text: str) -> str | None:
    return next(reversed(re.findall(r"^#+ .*\S", text, re.M)), None)
