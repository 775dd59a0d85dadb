"""Which form a row has, by its columns; and what is said where none fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunebook.data.fields import is_missing
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

# Of a preference set. The worse side comes first: `dispreferred` holds `preferred`.
WORSE_PARTS = ("worse", "worst", "bad", "dispreferred", "non_preferred", "loser", "declined", "negative")
BETTER_PARTS = ("better", "best", "good", "preferred", "winner", "accepted", "positive")

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
    for is_there in (lambda name: not is_missing(raw.get(name)), lambda name: name in raw):
        for form in FORMS:
            if all(map(is_there, form.columns)) and form.fits(raw):
                return form
    columns = shorten(", ".join(raw), 200)
    if not raw:
        raise Unusable("unknown columns", "an empty row")
    if "chosen" in raw and "rejected" in raw:
        for side in ("chosen", "rejected"):
            if is_missing(raw[side]):
                raise Unusable("empty cell", f"{side}: empty")
        raise Unusable(
            "unknown columns",
            f"the columns {columns} are those of a preference set: name it in pairs.dataset, or train on "
            "one side with `columns`, as in {completion: chosen}",
        )
    if list(raw) == ["text"]:
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
    prompt, completion = longest(raw) or ("...", "...")
    raise Unusable(
        "unknown columns",
        f"no known form has the columns {columns}: name two of them in `columns`, as in "
        f"{{prompt: {prompt}, completion: {completion}}}, or set `format` to one of {', '.join(FORMATS)}",
    )


def longest(raw: Raw) -> tuple[str, str] | None:
    """The two columns of a row with the longest texts, in their order: most likely question and answer.

    None where a third is about as long: it may be the answer as well, or the worse one of two.
    """
    lengths = {name: len(str(raw[name] or "")) for name in raw}
    by_length = sorted(raw, key=lambda name: -lengths[name])
    if len(raw) > 2 and 2 * lengths[by_length[2]] >= lengths[by_length[1]]:
        return None
    names = [name for name in raw if name in by_length[:2]]
    return names[0], names[-1]


def named_alike(raw: Raw) -> dict[str, str]:
    """What the text columns of a row are by parts of their names; empty where they do not say it.

    `Kundenfrage` holds a question, `Antwort Team` an answer; `better` and `worse` are two answers.

    Returns:
        The columns of `prompt`, `chosen` and `rejected`, or else those of `prompt` and `completion`.
    """
    prompt = _named(raw, QUESTION_PARTS, ())
    rejected = _named(raw, WORSE_PARTS, (prompt,))
    chosen = _named(raw, BETTER_PARTS, (prompt, rejected))
    if prompt and chosen and rejected:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    completion = _named(raw, ANSWER_PARTS, (prompt,))
    return {"prompt": prompt, "completion": completion} if prompt and completion else {}


def _named(raw: Raw, parts: tuple[str, ...], taken: tuple[str, ...]) -> str:
    """The first text column with one of these parts in its name; empty where there is none."""
    for name, value in raw.items():
        is_alike = any(part in name.casefold() for part in parts)
        if is_alike and isinstance(value, str) and name not in taken:
            return name
    return ""


def why_missing(name: str, raw: Raw, columns: dict[str, str]) -> tuple[str, str]:
    """The reason and its detail where a row has nothing under a name: an empty cell, or no such column.

    Of a missing column it says which ones the row has, and how one of them is named.
    """
    theirs = columns.get(name, name)
    if theirs in raw:
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
