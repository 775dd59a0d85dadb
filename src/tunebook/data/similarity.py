"""Texts compared: words and n-grams, near-duplicates, and the index that finds sets that are alike.

It looks for sets of word n-grams that share at least a part t of their n members. Such sets share one of any
n - ceil(t·n) + 1 of these members, so only so many are looked up (prefix filtering: Chaudhuri et al. 2006).
Nothing is missed, and almost nothing is compared in vain.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

from tunebook.data.rows import Reject, Row, rejected
from tunebook.recipe.sections import Compared

# Words in an n-gram for near-duplicates.
SHINGLE = 3

# Texts in which phrases are counted before texts are compared.
SAMPLE = 2_000

# Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese: no spaces between words, so a character is a word.
UNSPACED = (
    r"\u0e01-\u0e4e\u0e81-\u0ece\u0f00-\u0f1f\u0f34-\u0fbc\u1000-\u103f\u1050-\u109f\u1780-\u17d3"
    r"\u3005-\u3007\u3041-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)

# Vowel signs and accents that stand inside words, though they are no letters for `re`.
MARKS = (
    r"\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    r"\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963\u0980-\u0dff"
)

# What changes the meaning of a text, other than the punctuation of prose.
SYMBOLS = (
    # Operators and code; a hyphen inside a word, a colon before a space and the `!` of a sentence are none.
    r"[+/^%<>=&|~@#\[\]{}*`]|(?<![^\W\d_])-|-(?![^\W\d_])|:(?=[^\s\"'])|!(?=[\w=(])|(?<=\d)!"
    # parentheses beside an operator
    r"|(?<=[-+*/^])[()]|(?<=[-+*/^] )[()]|[()](?=\s?[-+*/^])"
    # signs, currencies, arrows, mathematics, emoji
    r"|[\u00a2-\u00a9\u00ac\u00ae-\u00b3\u00b5\u00b9\u00bc-\u00be\u00d7\u00f7"
    r"\u20a0-\u20cf\u2100-\u2bff\U0001f000-\U0001faff]"
)

NUMBER = r"\d+(?:\.\d+)?"
WORDS = re.compile(rf"{NUMBER}|[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W\d_]|[{MARKS}])+|{SYMBOLS}")

# The same for texts that have none of these characters, several times as fast.
PLAIN_WORDS = re.compile(rf"{NUMBER}|[^\W\d_]+|{SYMBOLS}")
SPECIAL = re.compile(f"[{UNSPACED}{MARKS}]")
SYMBOL = re.compile(rf"[^\w\s{UNSPACED}{MARKS}]")

# Emphasis of Markdown, and what begins its lines: layout.
EMPHASIS = re.compile(r"(?<![\w*])(\*\*?)(?=[^\s*])([^*\n]+)(?<=\S)\1(?![\w*])")
LINE_START = re.compile(r"^[ \t]*(?:[-*+>]|#+)[ \t]+", re.MULTILINE)

# A number with the operator between it and what stands before it, or with its own minus. Chinese numerals
# too: 三百公里 and 五百公里 are other problems.
NUMBERS = re.compile(
    rf"(?:(?<=[\w)])[-+*/^<>=×÷]|(?<=[\w)] )[-+*/^<>=×÷] ?|(?<!\S)-)?{NUMBER}"
    r"|[〇零一二三四五六七八九十百千万亿兩两]+"
)


class Hashes(NamedTuple):
    """What a row is compared by. They differ from process to process, unless PYTHONHASHSEED is set."""

    source_id: str
    text: int
    question: set[int]
    """Of the word 3-grams of the question; no other text has one of them."""
    completion: set[int]
    rarest: list[int]
    """Those of all 3-grams that similar rows are looked up by."""


class Duplicates:
    """Exact and near-duplicates among the rows seen so far.

    Near means a Jaccard similarity of word 3-grams of at least `threshold`, with the same numbers, symbols
    and images: a generator's or a textbook's own phrases with other numbers are other problems.

    Args:
        compared: `prompt+completion`: both must be alike, so that several solutions of one problem stay;
            `prompt`: one row of each question stays; `none`: all do.
    """

    def __init__(
        self, threshold: float, sample: Iterable[Row] = (), compared: Compared = "prompt+completion"
    ) -> None:
        self.threshold = threshold
        self.compared = compared
        # Of the rows that were no duplicates, the first of each text:
        self.ids_by_text: dict[int, str] = {}
        self.source_ids: list[str] = []
        # How many of its shingles are the question's; the others are the completion's.
        self.of_question = array("q")
        self.shingles = Index(threshold, (set().union(*self._shingles(row)) for row in sample))

    def check(self, row: Row) -> Reject | None:
        """Reject a duplicate, else remember the row."""
        match = self.match(self.hashes(row))
        return rejected(row, *match) if match else None

    def hashes(self, row: Row) -> Hashes | None:
        """What `match` needs of a row, which depends on no other; None where nothing is compared."""
        if self.compared == "none":
            return None
        completion = row.answer if self.compared == "prompt+completion" else ""
        text = hash((words(row.question), words(completion), *row.images))
        of_question, of_completion = self._shingles(row)
        # Where both are alike their union is as well, so that is what is looked up.
        rarest = self.shingles.rarest(of_question | of_completion)
        return Hashes(row.source_id, text, of_question, of_completion, rarest)

    def match(self, hashes: Hashes | None) -> tuple[str, str] | None:
        """Reason and detail when a row is like an earlier one; else it is remembered."""
        if hashes is None:
            return None
        if hashes.text in self.ids_by_text:
            return "duplicate", f"of {self.ids_by_text[hashes.text]}"

        # All of them, so that the one which is named depends on no order.
        similar = []
        for number in self.shingles.lookup(hashes.rarest):
            others = self.shingles.sets[number]
            theirs = self.of_question[number]
            questions_alike = self._alike(hashes.question, others, theirs)
            if questions_alike and self._alike(hashes.completion, others, len(others) - theirs):
                similar.append(self.source_ids[number])
        if similar:
            return "near-duplicate", f"of {min(similar)}"

        self.ids_by_text[hashes.text] = hashes.source_id
        self.source_ids.append(hashes.source_id)
        self.of_question.append(len(hashes.question))
        self.shingles.add(hashes.question | hashes.completion, hashes.rarest)
        return None

    def _alike(self, shingles: set[int], others: array[int], size: int) -> bool:
        """Whether a question or completion is like the one that has `size` of the others."""
        shared = len(shingles.intersection(others))
        return shared >= self.threshold * (len(shingles) + size - shared)

    def _shingles(self, row: Row) -> tuple[set[int], set[int]]:
        """The 3-grams of question and completion, each with the numbers, symbols and images of its text.

        No shingle of a question is one of a completion.
        """
        of_question = ngrams(row.question, SHINGLE, *_particulars(row.question), *row.images)
        if self.compared == "prompt":
            return of_question, set()
        text = row.answer
        return of_question, ngrams(text, SHINGLE, "completion", *_particulars(text))


class Index:
    """Sets of 64-bit hashes, each found by the members that are rarest in a sample of sets.

    Without the sample it is right as well, but what all sets share (the words of `data.user_prompt`) would
    make each a candidate for every other: with 25 such words, 8,000 rows took 73 s instead of 0.7.
    """

    def __init__(self, threshold: float, sample: Iterable[Iterable[int]]) -> None:
        self.threshold = threshold
        self.frequency = Counter[int]()
        for hashes in sample:
            self.frequency.update(hashes)
        self.sets: list[array[int]] = []
        # Most hashes are in one set alone: a list for each would take 400 MB more for a million rows.
        self.first_set: dict[int, int] = {}
        self.further_sets: dict[int, list[int]] = {}

    def rarest(self, hashes: Collection[int]) -> list[int]:
        """So many members of a set that a set which shares `threshold` of them has one of these."""
        in_order = sorted(hashes, key=lambda member: (self.frequency[member], member))
        return in_order[: len(hashes) - math.ceil(self.threshold * len(hashes)) + 1]

    def add(self, hashes: Collection[int], rarest: Iterable[int]) -> None:
        """Remember a set, to be found by its rarest members; its number is its place in `sets`."""
        number = len(self.sets)
        self.sets.append(array("q", hashes))
        for member in rarest:
            if member in self.first_set:
                self.further_sets.setdefault(member, []).append(number)
            else:
                self.first_set[member] = number

    def lookup(self, hashes: Iterable[int]) -> set[int]:
        """The numbers of the sets that have one of these hashes among their rarest."""
        numbers = set[int]()
        for member in hashes:
            if member in self.first_set:
                numbers.add(self.first_set[member])
                numbers.update(self.further_sets.get(member, ()))
        return numbers


@functools.lru_cache(maxsize=64)  # the checks of a row ask for the same two texts
def words(text: str) -> tuple[str, ...]:
    """Lower-case words, numbers and symbols, punctuation and layout aside.

    Of scripts that put no spaces between words each character is one.
    """
    plain = EMPHASIS.sub(r"\2", LINE_START.sub("", _normal(text)))
    pattern = WORDS if SPECIAL.search(plain) else PLAIN_WORDS
    found = tuple(pattern.findall(plain))
    # A text of nothing but punctuation is itself.
    return found or tuple(text.split())


def number_list(text: str) -> list[str]:
    """The numbers of a text with their signs, sorted."""
    numbers = NUMBERS.findall(_normal(text))
    return sorted(number.replace(" ", "") for number in numbers)


def _particulars(text: str) -> list[str]:
    """Numbers and symbols: texts that differ in one of them say different things, however long they are."""
    symbols = [word for word in words(text) if SYMBOL.fullmatch(word)]
    return number_list(text) + sorted(symbols)


def _normal(text: str) -> str:
    """In lower case, letters with their accents as one character each, and one kind of minus."""
    return unicodedata.normalize("NFC", text).lower().replace("\u2212", "-")


def ngrams(text: str, length: int, *beside: str) -> set[int]:
    """The word n-grams of a text, each with what is `beside`; of a text with fewer words all words as one.

    As 64-bit hashes, which take a fifth of the memory. They differ from process to process: never store them.
    """
    parts = words(text)
    # Once for all n-grams: a long program has hundreds of numbers and symbols.
    particulars = hash(beside)
    if len(parts) <= length:
        return {hash((parts, particulars))}
    # The words from the first on, from the second on, ... side by side.
    shifted = [parts[start:] for start in range(length)]
    return {hash((gram, particulars)) for gram in zip(*shifted, strict=False)}
