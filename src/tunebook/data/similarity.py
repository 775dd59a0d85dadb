"""Texts compared: near-duplicates, and train rows that hold a held-out question.

Both look for sets of word n-grams that overlap by a share t of a set with n members. Such a set shares one of any
n - ceil(t·n) + 1 of its members with the other, so only these are looked up (prefix filtering: Chaudhuri et al.
2006). Nothing is missed, and almost nothing is compared in vain.
"""

from __future__ import annotations

import functools
import math
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterable

from tunebook.data.benchmark_items import benchmark_items
from tunebook.data.rows import Reject, Row, rejected
from tunebook.recipe.sections import Recipe

NGRAM = 8
"""Words in an n-gram for decontamination: between the 13 of GPT-3 and what short problems have at all."""


FEWEST = 4
"""Words of a question that is looked for inside longer texts.

A shorter one ("Why?", "What is inflation?") is a phrase that others hold too: only the same text counts.
"""


SHINGLE = 3
"""Words in an n-gram for near-duplicates."""


SAMPLE = 2_000
"""Texts in which phrases are counted before texts are compared."""


SEEN = "in the test or val split"


class Duplicates:
    """Exact and near-duplicates among the questions seen so far.

    Near means a Jaccard similarity of word 3-grams of at least `threshold`, with the same numbers (and images):
    a generator's or a textbook's own phrases with other numbers are other problems.
    """

    def __init__(self, threshold: float, sample: Iterable[Row] = ()) -> None:
        self.threshold = threshold
        self.source_ids: list[str] = []
        """Of the rows that were no duplicates."""
        self.by_text: dict[int, str] = {}
        self.shingles = _Index(threshold, map(_shingles, sample))

    def check(self, row: Row) -> Reject | None:
        """Reject a duplicate, else remember the row."""
        text = hash((words(row.question), *row.images))
        if text in self.by_text:
            return rejected(row, "duplicate", f"of {self.by_text[text]}")

        shingles = _shingles(row)
        first_shingles = self.shingles.first(shingles)
        similar = []
        for number in self.shingles.lookup(first_shingles):
            other = self.shingles.sets[number]
            both = len(shingles.intersection(other))
            if both >= self.threshold * (len(shingles) + len(other) - both):
                similar.append(self.source_ids[number])
        if similar:
            return rejected(row, "near-duplicate", f"of {min(similar)}")

        self.by_text[text] = row.source_id
        self.source_ids.append(row.source_id)
        self.shingles.add(shingles)
        return None


class Contamination:
    """Finds rows that hold a question of `held_out`.

    A row is contaminated when its question or its answer has at least `threshold` of a held-out question's word
    8-grams (all its words in a row, where it has fewer: `FEWEST`) and all of its numbers, or when it has one of
    its images. A question without a number is known by its image alone.
    """

    def __init__(self, threshold: float, held_out: Iterable[Row], reason: str = SEEN) -> None:
        self.threshold = threshold
        self.reason = reason
        self.source_ids: list[str] = []
        """Of the held-out questions."""
        self.numbers: list[list[str]] = []
        self.images: dict[str, str] = {}
        """The id of the held-out row that an image is of."""
        self.lengths = set[int]()
        """Of the questions' n-grams, in words: rows are searched for no others."""
        questions = []
        for row in held_out:
            for image in row.images:
                self.images[image] = row.source_id
            numbers = number_list(row.question)
            if numbers or not row.images:
                length = len(words(row.question))
                if not FEWEST <= length < NGRAM:
                    length = NGRAM
                self.lengths.add(length)
                questions.append(array("q", ngrams(row.question, length)))
                self.source_ids.append(row.source_id)
                self.numbers.append(numbers)
        self.ngrams = _Index(threshold, questions[:: len(questions) // SAMPLE + 1])
        for grams in questions:
            self.ngrams.add(grams)

    def check(self, row: Row) -> Reject | None:
        """Reject a row that holds a held-out question or image."""
        for image in row.images:
            if image in self.images:
                return rejected(row, self.reason, f"has the image of {self.images[image]}")
        for text in (row.question, row.completion[0]["content"]):
            held = self._held_in(text)
            if held:
                return rejected(row, self.reason, held)
        return None

    def _held_in(self, text: str) -> str:
        """Which question a text holds, and how much of it; empty when none."""
        grams = set[int]()
        for length in self.lengths:
            grams |= ngrams(text, length)
        candidates = self.ngrams.lookup(grams)
        numbers = Counter(number_list(text))
        for number in sorted(candidates):
            question = self.ngrams.sets[number]
            count = len(grams.intersection(question))
            if count >= self.threshold * len(question) and Counter(self.numbers[number]) <= numbers:
                return f"holds {count} of {len(question)} n-grams of {self.source_ids[number]}"
        return ""


class _Index:
    """Sets of 64-bit hashes, each found by its first members: those that are rarest in a sample of sets.

    Without the sample it is right as well, but what all sets share (the words of `data.user_prompt`) would make
    each a candidate for every other: with 25 such words, 8,000 rows took 73 s instead of 0.7.
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

    def first(self, hashes: Collection[int]) -> list[int]:
        """So many members of a set that any other which shares `threshold` of it has one of them."""
        rarest_first = sorted(hashes, key=lambda one: (self.frequency[one], one))
        return rarest_first[: len(hashes) - math.ceil(self.threshold * len(hashes)) + 1]

    def add(self, hashes: Collection[int]) -> None:
        """Remember a set; its number is its place in `sets`."""
        number = len(self.sets)
        self.sets.append(array("q", hashes))
        for one in self.first(hashes):
            if self.first_set.setdefault(one, number) != number:
                self.further_sets.setdefault(one, []).append(number)

    def lookup(self, hashes: Iterable[int]) -> set[int]:
        """The numbers of the sets that have one of these hashes among their first."""
        numbers = set[int]()
        for one in hashes:
            if one in self.first_set:
                numbers.add(self.first_set[one])
                numbers.update(self.further_sets.get(one, ()))
        return numbers


def benchmarks(recipe: Recipe) -> Contamination:
    """Against the benchmark items that lie on this machine (`evaluate.benchmarks.data`)."""
    return Contamination(recipe.data.contamination, benchmark_items(recipe), "in a benchmark")


@functools.lru_cache(maxsize=64)  # the checks of a row ask for the same two texts
def words(text: str) -> tuple[str, ...]:
    """Lower-case words and numbers, punctuation and layout aside."""
    return tuple(re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", text.lower()))


def number_list(text: str) -> list[str]:
    """The numbers of a text, sorted."""
    return sorted(re.findall(r"\d+(?:\.\d+)?", text))


def ngrams(text: str, length: int, *beside: str) -> set[int]:
    """The hashes of a text's word n-grams (of all its words, where it has fewer), each with what stands beside it."""
    parts = words(text)
    if len(parts) <= length:
        return {hash((parts, beside))}
    # The words from the first on, from the second on, ... side by side.
    shifted = [parts[start:] for start in range(length)]
    return {hash((gram, beside)) for gram in zip(*shifted, strict=False)}


def _shingles(row: Row) -> set[int]:
    """The hashes of a question's 3-grams, each with the numbers and images of the row."""
    return ngrams(row.question, SHINGLE, *number_list(row.question), *row.images)
