"""The forms in which preference sets are published: each becomes `prompt`, `chosen` and `rejected`.

To add one, write its function and its line in `FORMS`; a set's form is recognised by its columns, row by row.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from tunebook.data.fields import MissingColumn, is_missing, lower_cased, messages_of, refuse_tools
from tunebook.data.rows import Raw, Reject, Unusable
from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import shorten

# How sets call the scores of chosen and rejected.
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)

# Where a turn of a dialogue in one text begins, as hh-rlhf writes it.
SPEAKER = re.compile(r"(?:^|\n\n)\s*(Human|Assistant):[ ]?")

# The last place in a text where a sentence or a line ends.
SENTENCE_END = re.compile(r".*(?:[.?!:][\"')\]]*(?=\s)|[。？！：]|\n)", re.DOTALL)


def plain(raw: Raw) -> Raw:
    """`prompt`, `chosen` and `rejected`, each as text or messages, as TRL has them.

    A prompt that both sides begin with once more is taken off them. A `question`, `instruction`, `query` or
    `input` may stand for the prompt, as in Orca's, LLaMA-Factory's and distilabel's sets.
    """
    row = dict(raw)
    for name in ("prompt", "question", "instruction", "query", "problem", "input"):
        if not is_missing(raw.get(name)):
            row["prompt"] = raw[name]
            if name == "input":
                row["input"] = None
            break
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        dialogue = _dialogue(prompt)
        _take_off(row, prompt.strip())
        if dialogue:
            row["prompt"] = dialogue
    return row


def _take_off(row: Raw, prompt: str) -> None:
    """Take the prompt off both sides where both begin with it and go on."""
    further = []
    for side in ("chosen", "rejected"):
        text = row.get(side)
        if not prompt or not isinstance(text, str) or not _repeats(text.strip(), prompt):
            return
        further.append(text.strip().removeprefix(prompt).strip())
    if all(further):
        row["chosen"], row["rejected"] = further


def _repeats(text: str, prompt: str) -> bool:
    """Whether a text begins with the whole prompt, and not with a word or two that are its own.

    `Hi! How can I help?` is all of an answer to `Hi`.
    """
    if not text.startswith(prompt):
        return False
    goes_on_apart = text[len(prompt) :][:1].isspace()
    return prompt.endswith(("?", ":", "？", "：")) or (goes_on_apart and len(prompt.split()) > 2)


def implicit(raw: Raw) -> Raw:
    """`chosen` and `rejected` alone: what they have in common at their beginning is the prompt.

    Two conversations are kept as they are; of two dialogues in one text (`Human:`, `Assistant:`), as in
    hh-rlhf, the turns are read; of two texts the prompt ends with the last sentence that both have whole.

    Source: TRL's `extract_prompt`; Bai et al. 2022.
    """
    chosen, rejected = raw["chosen"], raw["rejected"]
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return raw
    dialogues = _dialogue(chosen), _dialogue(rejected)
    if all(dialogues):
        return {**raw, "chosen": dialogues[0], "rejected": dialogues[1]}
    common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071, it is meant by the character
    after = chosen[len(common) :][:1] + rejected[len(common) :][:1]
    # `It is 3.` of 3.1 and 3.2 is no sentence, of two answers on lines of their own it is.
    sentences = SENTENCE_END.match(common + " " if after.isspace() else common)
    # Without any, at least the words are whole.
    prompt = sentences[0] if sentences else common[: common.rfind(" ") + 1]
    if not prompt.strip():
        raise Unusable("no prompt", "chosen and rejected begin with nothing in common, a prompt is missing")
    return {
        **raw,
        "prompt": prompt.strip(),
        "chosen": chosen[len(prompt) :].strip(),
        "rejected": rejected[len(prompt) :].strip(),
    }


def _dialogue(text: str) -> Messages:
    """The turns of `Human: ... Assistant: ...`; an open last turn is left out; empty for any other text."""
    begin, *parts = SPEAKER.split(text)
    if begin.strip() or not parts or parts[0] != "Human":
        return []
    messages = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        messages.append({"role": role, "content": content.strip()})
    if len(messages) > 1 and not messages[-1]["content"]:
        messages.pop()
    return messages


def openai(raw: Raw) -> Raw:
    """OpenAI's `input` (of `messages` and `tools`), `preferred_output` and `non_preferred_output`."""
    given = raw["input"]
    if not isinstance(given, dict):
        raise Unusable("wrong type", "input: not an object with messages")
    refuse_tools(given, "input")
    return {
        **raw,
        "input": None,
        "prompt": given.get("messages"),
        "chosen": raw["preferred_output"],
        "rejected": raw["non_preferred_output"],
    }


def sharegpt(raw: Raw) -> Raw:
    """LLaMA-Factory's ranking sets: `conversations` up to the question, one turn each for the two sides.

    Source: LLaMA-Factory's data/README.md.
    """
    prompt = messages_of(raw["conversations"], "conversations", trained=False)
    return {**raw, "prompt": prompt}


def swift(raw: Raw) -> Raw:
    """ms-swift's `messages`, whose last one is chosen, and `rejected_response`."""
    messages = messages_of(raw["messages"], "messages")
    return {
        **raw,
        "messages": None,
        "prompt": messages[:-1],
        "chosen": messages[-1:],
        "rejected": raw["rejected_response"],
    }


def swift_query(raw: Raw) -> Raw:
    """ms-swift's older `query`, `response` and `rejected_response`, with `history` and `system`."""
    row = {**raw, "prompt": raw["query"], "chosen": raw["response"], "rejected": raw["rejected_response"]}
    return plain(row)


def ultrafeedback(raw: Raw) -> Raw:
    """UltraFeedback as its authors publish it: the best of the `completions` against the worst of them.

    Source: Cui et al. 2023.
    """
    completions = raw["completions"]
    if not isinstance(completions, list):
        raise Unusable("wrong type", "completions: not a list")
    answers = []
    for i, completion in enumerate(completions):
        if not isinstance(completion, dict):
            raise Unusable("wrong type", f"completions[{i}]: not an object")
        answers.append((completion.get("overall_score"), completion.get("response")))
    return _best_and_worst(raw, answers)


def generations(raw: Raw) -> Raw:
    """distilabel's `generations` with their `ratings`: the best against the worst."""
    ratings = raw.get("ratings")
    if ratings is None:
        ratings = raw.get("rating")
    texts = raw["generations"]
    if not isinstance(texts, list) or not isinstance(ratings, list) or len(texts) != len(ratings):
        raise Unusable("wrong type", "generations and ratings: not two lists of the same length")
    return _best_and_worst(raw, list(zip(ratings, texts, strict=True)))


def _best_and_worst(raw: Raw, answers: list[tuple[Any, Any]]) -> Raw:
    """A row with the best of scored answers as chosen and the worst as rejected."""
    scored = []
    for score, text in answers:
        if isinstance(score, int | float) and not is_missing(score) and isinstance(text, str):
            scored.append((float(score), text))
    if len(scored) < 2:
        raise Unusable("no scores", f"{len(scored)} of {len(answers)} answers have a score, two are needed")
    best = max(scored, key=lambda answer: answer[0])
    worst = min(scored, key=lambda answer: answer[0])
    if best[0] == worst[0]:
        raise Unusable("tie", f"all {len(scored)} answers are scored {best[0]:g}")
    row = plain(raw | {"chosen": best[1], "rejected": worst[1]})
    return row | {"score_chosen": best[0], "score_rejected": worst[0]}


def has_ratings(raw: Raw) -> bool:
    return "ratings" in raw or "rating" in raw


@dataclass(frozen=True)
class Form:
    """A form of preference sets: by which columns it is known, and what makes a plain row of it."""

    name: str
    columns: tuple[str, ...]
    function: Callable[[Raw], Raw]
    fits: Callable[[Raw], bool] = bool
    """What else a row must be like."""


FORMS = (
    Form("OpenAI's", ("input", "preferred_output", "non_preferred_output"), openai),
    Form("ms-swift's", ("messages", "rejected_response"), swift),
    Form("ms-swift's", ("query", "response", "rejected_response"), swift_query),
    Form("ShareGPT ranking", ("conversations", "chosen", "rejected"), sharegpt),
    Form("prompt, chosen, rejected", ("prompt", "chosen", "rejected"), plain),
    Form("question, chosen, rejected", ("question", "chosen", "rejected"), plain),
    Form("Alpaca ranking", ("instruction", "chosen", "rejected"), plain),
    Form("query, chosen, rejected", ("query", "chosen", "rejected"), plain),
    Form("problem, chosen, rejected", ("problem", "chosen", "rejected"), plain),
    Form("input, chosen, rejected", ("input", "chosen", "rejected"), plain),
    Form("chosen and rejected with the prompt inside", ("chosen", "rejected"), implicit),
    Form("UltraFeedback's", ("instruction", "completions"), ultrafeedback),
    Form("distilabel's generations", ("instruction", "generations"), generations, has_ratings),
    Form("distilabel's generations", ("input", "generations"), generations, has_ratings),
    Form("distilabel's generations", ("prompt", "generations"), generations, has_ratings),
)

# Of rows that are half a pair each, as KTO wants them.
LABELLED = ("prompt", "completion", "label")
LABELS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}


def recognised(raw: Raw) -> Form:
    """The form of a row by its columns. Raises Unusable that says which it has and what can be done."""
    # A column may be there and empty, as all columns of a Parquet or CSV file are in every row.
    row = lower_cased(raw)
    for form in FORMS:
        if all(not is_missing(row.get(name)) for name in form.columns) and form.fits(row):
            return form
    if "chosen" in row or "rejected" in row:
        for name in ("chosen", "rejected"):
            if is_missing(row.get(name)):
                raise MissingColumn(name)
    columns = ", ".join(raw) or "none"
    raise Unusable(
        "unknown columns",
        f"no known form of preference pairs has the columns {columns}: name them in `pairs.columns`, as in "
        "{prompt: question, chosen: good, rejected: bad}, or write prompt, chosen and rejected",
    )


def refuse_tie(raw: Raw) -> None:
    """Raises Unusable where distilabel's own columns say that neither side is better."""
    rating = raw.get("rating")
    same = isinstance(rating, list) and len(rating) > 1 and len(set(map(str, rating))) == 1
    if raw.get("status") == "tie" or same:
        raise Unusable("tie", f"rating {rating}" if same else "status: tie")


def with_scores(raw: Raw) -> Raw:
    """A row with its scores under our names, where a set has others."""
    for chosen, rejected in SCORES:
        if not is_missing(raw.get(chosen)) and not is_missing(raw.get(rejected)):
            return {**raw, "score_chosen": raw[chosen], "score_rejected": raw[rejected]}
    return raw


def pair_labels(named: Iterable[tuple[str, Raw | Reject]]) -> Iterator[tuple[str, Raw | Reject]]:
    """Rows of `prompt`, `completion` and `label` (KTO's) two by two; others as they are, and first.

    The first good completion of a prompt goes with its first bad one, and so on. What is left over has no
    counterpart and is a reject.

    Source: Ethayarajh et al. 2024; the form as TRL's `unpaired preference`.
    """
    # A pair needs both rows, which may lie far apart: all of them are in memory.
    prompts: dict[str, dict[bool, list[tuple[str, Raw]]]] = {}
    for source_id, given in named:
        raw = given if isinstance(given, Reject) else lower_cased(given)
        is_labelled = not isinstance(raw, Reject) and all(name in raw for name in LABELLED)
        if isinstance(raw, Reject) or not is_labelled or not is_missing(raw.get("chosen")):
            yield source_id, given
            continue
        label = raw["label"]
        key = label.strip().lower() if isinstance(label, str) else label
        if not isinstance(key, str | int | float) or key not in LABELS:
            detail = f"label: {shorten(label)} is neither true nor false"
            yield source_id, Reject(source_id, "wrong type", detail, raw)
            continue
        prompt = json.dumps(raw["prompt"], sort_keys=True, default=str)
        prompts.setdefault(prompt, {True: [], False: []})[LABELS[key]].append((source_id, raw))
    rows = 0
    pairs = 0
    for sides in prompts.values():
        both = min(len(sides[True]), len(sides[False]))
        for (source_id, good), (_, bad) in zip(sides[True][:both], sides[False][:both], strict=True):
            yield source_id, {**good, "chosen": good["completion"], "rejected": bad["completion"]}
        pairs += both
        for label, of_label in sides.items():
            rows += len(of_label)
            for source_id, raw in of_label[both:]:
                detail = f"no further row answers this prompt with label {str(not label).lower()}"
                yield source_id, Reject(source_id, "no counterpart", detail, raw)
    if rows:
        tqdm.write(f"{2 * pairs} of {rows} rows with a label make {pairs} pairs")
