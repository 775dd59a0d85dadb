"""Is this answer right? One verifier for data checks, pairs and evaluation.

Of `formulas/`, `extract` finds a final answer that stands in no box, `comparing` compares two of them (lists,
names, units), and `algebra` asks math-verify in a process of its own. Words, plain numbers and
equal texts never get that far.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from tunebook.checkers.formulas.algebra import Worker
from tunebook.checkers.formulas.comparing import compare
from tunebook.checkers.formulas.extract import last_expression
from tunebook.checkers.formulas.latex import normalise
from tunebook.checkers.formulas.units import read_unit

MAX_LENGTH = 400  # characters; a longer final answer is not one
MAX_BOXES = 20  # that are one answer

_JOINED_BOXES = re.compile(r"\}[\s$]*(?:[,;]|\band\b|\bor\b|\\text\s*\{\s*(?:and|or)\s*\})[\s$]*\\boxed\s*$")
_CHOICE = re.compile(r"^\(?([A-E])\)\s*(?=\S)")
_NAME_AND_NUMBER = re.compile(r"\s*(?!(?:sqrt|sin|cos|tan|log|exp|and)\b)[^\W\d_]{3,}\.? \d+\W*")
_THOUGHT_BEGINS = re.compile(r"<think(?:ing)?>|\[THINK\]")
_THOUGHT_ENDS = re.compile(r"</think(?:ing)?>|\[/THINK\]")


@dataclass(frozen=True)
class Verdict:
    """What stands in an answer and whether it is right."""

    correct: bool
    parsed: str | None
    """The final answer as it stands there, before it is normalised."""
    how: Literal["boxed", "last number", "text", "none"]
    r"""Where it stands: in the last `\boxed{}`, as the last expression, in the text's words, or nowhere."""


def verifier() -> str:
    """Recorded with every score: scores of another version are not comparable without a look."""
    return f"tunebook-3/math-verify-{version('math-verify')}"


def verify(text: str, gold: str, *, boxed_only: bool = False) -> Verdict:
    r"""Compare the final answer in `text` with `gold` (without `\boxed`).

    What a model thinks does not count. The last `\boxed{}` does. Without one, and unless `boxed_only`, it is
    what follows `####` or "the answer is", or the last expression; where `gold` is a word, a letter or a
    sentence, it is looked for at the end.
    """
    text = after_thinking(text)
    answer = _last_boxes(text)
    if answer is not None:
        return Verdict(bool(answer.strip()) and equal(gold, answer), answer, "boxed")
    if boxed_only:
        return Verdict(False, None, "none")
    if is_words(normalise(gold) if len(gold) < MAX_LENGTH else gold):
        # A whole text of one \text{} is a final answer, and no sentence that holds one.
        if re.fullmatch(r"\s*\$?\\text\{[^{}]*\}\$?\s*", text):
            return Verdict(equal(gold, text), text.strip(), "text")
        return _verify_words(text, gold)
    answer = last_expression(text, gold)
    if answer is None:
        return Verdict(False, None, "none")
    return Verdict(equal(gold, answer), answer, "last number")


def after_thinking(text: str) -> str:
    """What follows the last `</think>`; nothing of a thought that never ends."""
    return _THOUGHT_BEGINS.split(_THOUGHT_ENDS.split(text)[-1])[0]


def _last_boxes(text: str) -> str | None:
    r"""The last box; of several that are joined by `and`, `or` or a comma, all of them."""
    text = re.sub(r"\\fbox(?=\s*\{)", r"\\boxed", text)
    last = boxed(text)
    if not last or not last.strip():
        return last
    boxes = [last]
    while len(boxes) < MAX_BOXES:
        text = text.rpartition("{" + boxes[0] + "}")[0]
        joined = _JOINED_BOXES.search(text[-100:])
        earlier = boxed(text) if joined else None
        if not earlier:
            break
        boxes.insert(0, earlier)
    return ", ".join(boxes)


def is_words(gold: str) -> bool:
    """Whether a gold answer is a word, a letter or a sentence, rather than a number or a formula."""
    # Arrows and operators, such as those of parallels, are no punctuation.
    if re.search(r"[\\$^=_{}\u2190-\u22ff]", gold):
        return False
    letters = re.findall(r"[^\W\d_]{2,}", gold)
    # `100 degrees` and `12 cm` are numbers; `It is 42.195 km long.` is a sentence, `June 20` a
    # date. `x + 1` is a formula.
    if re.search(r"\d", gold):
        is_date = bool(_NAME_AND_NUMBER.fullmatch(gold)) and read_unit(letters[0]) is None
        return is_date or (len(letters) >= 3 and not re.search(r"^\s*[-+]?\d", gold))
    if len(letters) == 0:
        return bool(re.fullmatch(r"\W*[^\W\d_]\W*", gold)) and not re.search(r"[-+*/<>|!]", gold)
    return True


def _verify_words(text: str, gold: str) -> Verdict:
    """Look for a gold answer in words: at the end, in the last sentence, or as the first word by itself."""
    wanted = _plain(gold)
    plain_text = _plain(text)
    last_sentence = _last_sentence(text)
    if _is_denied(wanted, _plain(last_sentence)):
        return Verdict(False, last_sentence[-MAX_LENGTH:], "text")
    if plain_text == wanted or plain_text.endswith(f" {wanted}"):
        return Verdict(True, gold, "text")
    if len(wanted) == 1:
        letter = _letter(text, last_sentence)
        return Verdict(letter is not None and letter.lower() == wanted, letter, "text")
    # Scripts without spaces have no whole words to look for.
    unspaced = re.search(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]", wanted)
    plain_sentence = _plain(last_sentence)
    in_sentence = f" {wanted} " in f" {plain_sentence} " or bool(unspaced and wanted in plain_sentence)
    # `Yes. Seven has no divisors ...`
    first = re.match(r"[^.!?,:;\n]+(?=[.!?,:;\n])", text.lstrip())
    begins = first is not None and _plain(first[0]) == wanted
    if in_sentence or begins:
        return Verdict(True, gold, "text")
    return Verdict(False, last_sentence[-MAX_LENGTH:], "text")


def _is_denied(wanted: str, sentence: str) -> bool:
    """It is not even; it isn't an integer."""
    return bool(
        re.search(
            rf"\b(?:not|never|\w+n['’]t|no)(?: an?| the)? {re.escape(wanted)}\b(?!.*\b{re.escape(wanted)}\b)",
            sentence,
        )
    )


def _letter(text: str, last_sentence: str) -> str | None:
    """The choice that a text makes: at its end, in its last sentence, or at its start."""
    # A letter at the end counts most; `A` before a word is an article, and `I` is a pronoun.
    end = re.search(r"(?<!not )(?<!than )(?:(?<!\w)|(?<=[\u4e00-\u9fff]))([^\W\d_])\W*$", text)
    if end:
        return end[1]
    letters = re.findall(r"(?<![\w'])(?!(?:A|I) [a-z])([A-Z])(?![\w'])", last_sentence)
    if letters:
        return str(letters[0])
    start = re.match(r"\W*([A-Za-z])(?:[.):,;]|\s*\n)", text)
    return start[1] if start else None


def _last_sentence(text: str) -> str:
    """What stands behind the last full stop, line break or the like that is followed by words."""
    # A stop inside a number or an initial (`J. Verne`) ends nothing.
    sentences = re.split(r"(?:(?<=[^\W\d_]{2})|(?<=[\d)\]\"']))[.!?]+\s+|[。！？]|\n+", text)
    spoken = [sentence for sentence in sentences if re.search(r"\w", sentence)]
    return spoken[-1] if spoken else ""


def _plain(text: str) -> str:
    """Words and numbers in lower case, with single spaces; punctuation aside."""
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r" \1 ", text.casefold())
    return " ".join(re.findall(r"\d+(?:[.,]\d+)*|[^\W_]+(?:['’][^\W_]+)*", text))


def _same_words(gold: str, answer: str) -> bool:
    wanted = _plain(gold)
    plain_answer = _plain(answer)
    # A choice may repeat what it chooses: `(B) 12`, `B. Paris`
    chosen = re.fullmatch(
        r"(?:(?i:option|choice|answer) )?\(?([A-Za-z])(?:[).:]+|$)\s*(?!.*\b(?:and|or)\b).*", answer
    )
    if len(wanted) == 1 and chosen:
        plain_answer = chosen[1].lower()
    return bool(plain_answer) and plain_answer == wanted


def boxed(text: str) -> str | None:
    r"""The content of the last closed `\boxed{...}`, braces inside it balanced; None when there is none."""
    # Once through, however many braces are never closed. Of each open one: where the content of its box
    # begins, or -1 for a brace that is no box.
    open_braces: list[int] = []
    start = end = -1
    for match in re.finditer(r"\\boxed\s*\{|[{}]", text):
        if match[0] == "{":
            open_braces.append(-1)
        elif match[0] != "}":
            open_braces.append(match.end())
        elif open_braces:
            content = open_braces.pop()
            if content > start:
                start = content
                end = match.start()
    if start < 0:
        return None
    return text[start:end]


@functools.lru_cache(maxsize=100_000)
def equal(gold: str, answer: str) -> bool:
    """Whether two final answers are the same. False when in doubt or out of time."""
    if max(len(gold), len(answer)) > 10 * MAX_LENGTH:
        return False
    gold = boxed(gold) or gold
    answer = boxed(answer) or answer
    plain_gold = normalise(gold)
    plain_answer = normalise(answer)
    if not plain_gold or not plain_answer or max(len(plain_gold), len(plain_answer)) > MAX_LENGTH:
        return False
    if plain_gold == plain_answer:
        return True
    # A single letter may be a choice or a variable: -x is not x.
    if is_words(plain_gold) and (len(plain_gold) > 1 or not re.search(r"[-+*/^|=<>!\\]", plain_answer)):
        return _same_words(plain_gold, plain_answer)
    # A choice with what it chooses: `(B) 12` for 12, and B for `(B) 12`
    choice = _CHOICE.match(plain_gold)
    if choice and plain_answer.strip("()") == choice[1]:
        return True
    plain_gold = _CHOICE.sub("", plain_gold)
    plain_answer = _CHOICE.sub("", plain_answer)
    try:
        return compare(plain_gold, plain_answer, _no_algebra)
    except _AlgebraNeeded:
        return _worker.ask(plain_gold, plain_answer)


class _AlgebraNeeded(Exception):
    """Formulas have to be compared, which takes another process."""


def _no_algebra(*_: str) -> bool:
    raise _AlgebraNeeded


_worker = Worker()
