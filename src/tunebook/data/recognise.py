"""Which form a row has, by its columns; and what is said where none fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tunebook.data.fields import is_missing, lower_cased
from tunebook.data.formats import (
    alpaca,
    chat,
    ends_in_result,
    gsm8k,
    has_no_other_messages,
    has_template,
    maths,
    question_answer,
    sharegpt,
    templated_text,
)
from tunebook.data.rows import Raw, Unusable
from tunebook.recipe.errors import did_you_mean, shorten

# Parts of the names that columns of questions and of answers have, in some languages.
QUESTION_PARTS = ("question", "prompt", "frage", "pregunta", "domanda", "pergunta", "tanong", "soru", "pytan")
ANSWER_PARTS = (
    *("answer", "response", "reply", "completion", "solution", "antwort", "lösung", "réponse", "reponse"),
    *("respuesta", "risposta", "resposta", "sagot", "cevap", "odpowied"),
)

# Words in the names of a preference set's answers. The worse side comes first: `less_preferred` has both.
WORSE_WORDS = {
    *("worse", "worst", "bad", "dispreferred", "less", "non", "rejected", "loser", "lose", "losing"),
    *("declined", "negative", "wrong", "incorrect", "other"),
}
BETTER_WORDS = {
    *("better", "best", "good", "preferred", "chosen", "winner", "win", "winning", "accepted", "positive"),
    *("right", "correct"),
}

# Where a word begins in `betterAnswer`.
CAMEL = re.compile("([a-z])([A-Z])")

NOT_NAMED = "..."
"""In a proposal the place of a column that no name tells."""

OUR_COLUMNS = ("prompt", "completion", "chosen", "rejected", "messages")
"""What is in its place already, and is proposed for nothing else."""

# Characters of the name of a column; a file without a header has a text in its place.
LONGEST_NAME = 60


@dataclass(frozen=True)
class Form:
    """A form of rows: by which columns it is known, and what makes a row of it.

    Where the recipe gives no `format`, the first form counts whose columns a row has. The function makes of a
    raw row one with `messages`, or with `prompt` and `completion`; where it cannot, it raises Unusable.
    """

    name: str
    columns: tuple[str, ...]
    function: Callable[[Raw], Raw]
    fits: Callable[[Raw], bool] = bool
    """What else a row must be like."""


FORMS = (
    Form("maths", ("problem", "solution"), maths, has_no_other_messages),
    Form("chat", ("messages",), chat),
    Form("sharegpt", ("conversations",), sharegpt),
    Form("sharegpt", ("conversation",), sharegpt),
    Form("alpaca", ("instruction", "output"), alpaca),
    Form("chat", ("prompt", "completion"), chat),
    Form("gsm8k", ("question", "answer"), gsm8k, ends_in_result),
    Form("question_answer", ("question", "answer"), question_answer),
    Form("question_answer", ("question", "response"), question_answer),
    Form("question_answer", ("prompt", "response"), question_answer),
    Form("question_answer", ("instruction", "response"), question_answer),
    Form("question_answer", ("query", "response"), question_answer),
    Form("question_answer", ("prompt", "output"), question_answer),
    Form("question_answer", ("input", "output"), question_answer),
    Form("question_answer", ("prompt", "answer"), question_answer),
    Form("question_answer", ("question", "output"), question_answer),
    Form("question_answer", ("query", "answer"), question_answer),
    Form("question_answer", ("problem", "answer"), question_answer),
    Form("question_answer", ("question", "solution"), question_answer),
    Form("question_answer", ("user", "assistant"), question_answer),
    Form("question_answer", ("human", "assistant"), question_answer),
    Form("text", ("text",), templated_text, has_template),
)


# By the names that a recipe's `format` takes.
FORMATS: dict[str, Callable[[Raw], Raw]] = {form.name: form.function for form in FORMS} | {"prompts": chat}


def recognised(raw: Raw) -> Form:
    """The form of a row by its columns. Raises Unusable that says which it has and what can be done."""
    # A column may be there and empty, as all columns of a Parquet or CSV file are in every row.
    row = lower_cased(raw)
    for is_there in (lambda name: not is_missing(row.get(name)), lambda name: name in row):
        for form in FORMS:
            if all(map(is_there, form.columns)) and form.fits(row):
                return form
    columns = shorten(", ".join(raw), 200)
    if not raw:
        raise Unusable("unknown columns", "an empty row")
    if "chosen" in row and "rejected" in row:
        for side in ("chosen", "rejected"):
            if is_missing(row[side]):
                raise Unusable("empty cell", f"{side}: empty")
        raise Unusable(
            "unknown columns",
            f"the columns {columns} are those of a preference set: name it in pairs.dataset, or train on "
            "one side with `columns`, as in {completion: chosen}",
        )
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if side in row and other not in row:
            raise Unusable("missing column", f"{other}: missing; the row has {columns}")
    if list(row) == ["text"]:
        raise Unusable(
            "no prompt", "rows of `text` alone have no prompt and no answer: split them into two columns"
        )
    for name in raw:
        if len(name) > LONGEST_NAME or "?" in name:
            raise Unusable(
                "no header",
                f"{shorten(name, LONGEST_NAME)!r} looks like a text and not like the name of a column: a CSV "
                'wants a first line such as question,answer, JSON rows such as [{"question": "...", '
                '"answer": "..."}]',
            )
    lengths = {name: len(str(value or "")) for name, value in raw.items()}
    prompt, completion = longest(lengths) or (NOT_NAMED, NOT_NAMED)
    raise Unusable(
        "unknown columns",
        f"no known form has the columns {columns}: name two of them in `columns`, as in "
        f"{{prompt: {prompt}, completion: {completion}}}, or set `format` to one of {', '.join(FORMATS)}",
    )


def longest(lengths: dict[str, int]) -> tuple[str, str] | None:
    """The two columns with the longest texts, in their order: most likely question and answer.

    None where there may be two answers: by their names, or because a third text is about as long.

    Args:
        lengths: Characters of each column's texts.
    """
    by_length = sorted(lengths, key=lambda name: -lengths[name])
    has_worse = named_sides(lengths)["rejected"] != NOT_NAMED
    if len(lengths) < 2 or has_worse or len(_answers(lengths)) > 1:
        return None
    if len(lengths) > 2 and 2 * lengths[by_length[2]] >= lengths[by_length[1]]:
        return None
    first, second = sorted(by_length[:2], key=list(lengths).index)
    return first, second


def named_alike(lengths: dict[str, int]) -> dict[str, str]:
    """What columns of text are by parts of their names; empty where they do not say it, or two say the same.

    `Kundenfrage` holds a question, `Antwort Team` an answer; `better` and `worse` are two answers.

    Args:
        lengths: Characters of each column's texts.

    Returns:
        The columns of `prompt`, `chosen` and `rejected`, or else those of `prompt` and `completion`.
    """
    sides = named_sides(lengths)
    if NOT_NAMED not in sides.values():
        return sides
    answers = _answers(lengths)
    if sides["prompt"] == NOT_NAMED or len(answers) != 1:
        return {}
    return {"prompt": sides["prompt"], "completion": answers[0]}


def named_sides(names: Iterable[str]) -> dict[str, str]:
    """The columns of `prompt`, `chosen` and `rejected` by their names, `...` for what they do not say."""
    sides: dict[str, list[str]] = {"prompt": [], "chosen": [], "rejected": []}
    for name in names:
        words = set(re.findall(r"[^\W\d_]+", CAMEL.sub(r"\1_\2", name).casefold()))
        if words & WORSE_WORDS:
            sides["rejected"].append(name)
        elif words & BETTER_WORDS:
            sides["chosen"].append(name)
        elif any(part in name.casefold() for part in QUESTION_PARTS):
            sides["prompt"].append(name)
    told = dict.fromkeys(sides, NOT_NAMED)
    for side, columns in sides.items():
        # Of several questions the first; of several better or worse answers none is the one.
        if len(columns) == 1 or (columns and side == "prompt"):
            told[side] = columns[0]
    return told


def _answers(lengths: dict[str, int]) -> list[str]:
    """The columns that are named like an answer and are none of ids or dates, which are far shorter."""
    prompt = named_sides(lengths)["prompt"]
    names = []
    for name in lengths:
        if name != prompt and any(part in name.casefold() for part in ANSWER_PARTS):
            names.append(name)
    most = max(map(lengths.__getitem__, names), default=0)
    return [name for name in names if 10 * lengths[name] >= most]


def why_missing(name: str, raw: Raw, columns: dict[str, str]) -> tuple[str, str]:
    """The reason and its detail where a row has nothing under a name: an empty cell, or no such column.

    Of a missing column it says which ones the row has, and how one of them is named.
    """
    theirs = columns.get(name, name)
    if theirs in raw or theirs in lower_cased(raw):
        return "empty cell", f"{theirs}: empty"
    what = f"{name}: missing"
    names = shorten(", ".join(raw), 200) or "no columns"
    if name in columns:
        near = did_you_mean(theirs, raw)
        return "missing column", f"{what}; `columns` takes it from {theirs!r}, but the row has {names}{near}"
    free = [column for column in raw if column not in (*columns.values(), *OUR_COLUMNS)]
    if not free:
        return "missing column", f"{what}; the row has {names}"
    example = ", ".join(f"{ours}: {theirs}" for ours, theirs in {**columns, name: free[0]}.items())
    return "missing column", f"{what}; the row has {names}: name it in `columns`, as in {{{example}}}"
