"""Texts compared: near-duplicates, and train rows that hold a held-out question.

Both look for sets of word n-grams that share at least a part t of their n members. Such sets share one of any
n - ceil(t·n) + 1 of these members, so only so many are looked up (prefix filtering: Chaudhuri et al. 2006).
Nothing is missed, and almost nothing is compared in vain.
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

# Words in an n-gram for decontamination: between the 13 of GPT-3 and what short problems have at all.
NGRAM = 8

# Words of a question that is looked for inside longer texts. A shorter one ("Why?", "What is inflation?") is
# a phrase that others hold too: only the same text counts.
FEWEST = 4

# Words in an n-gram for near-duplicates.
SHINGLE = 3

# Texts in which phrases are counted before texts are compared.
SAMPLE = 2_000

SEEN = "in the test or val split"


class Duplicates:
    """Exact and near-duplicates among the questions seen so far.

    Near means a Jaccard similarity of word 3-grams of at least `threshold`, with the same numbers (and
    images): a generator's or a textbook's own phrases with other numbers are other problems.
    """

    def __init__(self, threshold: float, sample: Iterable[Row] = ()) -> None:
        self.threshold = threshold
        # Of the rows that were no duplicates, the first of each text:
        self.ids_by_text: dict[int, str] = {}
        self.source_ids: list[str] = []
        self.shingles = _Index(threshold, map(_shingles, sample))

    def check(self, row: Row) -> Reject | None:
        """Reject a duplicate, else remember the row."""
        text = hash((words(row.question), *row.images))
        if text in self.ids_by_text:
            return rejected(row, "duplicate", f"of {self.ids_by_text[text]}")

        shingles = _shingles(row)
        # All of them, so that the one which is named depends on no order.
        similar = []
        for number in self.shingles.lookup(self.shingles.rarest(shingles)):
            others = self.shingles.sets[number]
            shared = len(shingles.intersection(others))
            if shared >= self.threshold * (len(shingles) + len(others) - shared):
                similar.append(self.source_ids[number])
        if similar:
            return rejected(row, "near-duplicate", f"of {min(similar)}")

        self.ids_by_text[text] = row.source_id
        self.source_ids.append(row.source_id)
        self.shingles.add(shingles)
        return None


class Contamination:
    """Finds rows that hold a question of `held_out`.

    A row is contaminated when its question or its answer has at least `threshold` of a held-out question's
    word 8-grams (all its words in a row, where it has fewer: `FEWEST`) and all of its numbers, or when it has
    one of its images. A question without a number is known by its image alone.
    """

    def __init__(self, threshold: float, held_out: Iterable[Row], reason: str = SEEN) -> None:
        self.threshold = threshold
        self.reason = reason
        self.ids_by_image: dict[str, str] = {}
        # Of the held-out questions, in one order:
        self.source_ids: list[str] = []
        self.numbers: list[list[str]] = []
        questions = []
        # Of their n-grams, in words: rows are searched for no others.
        self.lengths = set[int]()
        for row in held_out:
            for image in row.images:
                self.ids_by_image[image] = row.source_id
            numbers = number_list(row.question)
            if numbers or not row.images:
                length = len(words(row.question))
                if not FEWEST <= length < NGRAM:
                    length = NGRAM
                self.lengths.add(length)
                self.source_ids.append(row.source_id)
                self.numbers.append(numbers)
                questions.append(array("q", ngrams(row.question, length)))
        step = len(questions) // SAMPLE + 1
        self.ngrams = _Index(threshold, questions[::step])
        for question in questions:
            self.ngrams.add(question)

    def check(self, row: Row) -> Reject | None:
        """Reject a row that holds a held-out question or image."""
        for image in row.images:
            if image in self.ids_by_image:
                return rejected(row, self.reason, f"has the image of {self.ids_by_image[image]}")
        # Each by itself: the numbers of a question must stand beside its words.
        for text in (row.question, row.completion[0]["content"]):
            match = self._match(text)
            if match:
                return rejected(row, self.reason, match)
        return None

    def _match(self, text: str) -> str:
        """Which held-out question a text holds, and how much of it; empty when none."""
        grams = set[int]()
        for length in self.lengths:
            grams |= ngrams(text, length)
        numbers = Counter(number_list(text))
        for number in sorted(self.ngrams.lookup(grams)):
            question = self.ngrams.sets[number]
            shared = len(grams.intersection(question))
            has_numbers = Counter(self.numbers[number]) <= numbers
            if has_numbers and shared >= self.threshold * len(question):
                return f"holds {shared} of {len(question)} n-grams of {self.source_ids[number]}"
        return ""


class _Index:
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

    def add(self, hashes: Collection[int]) -> None:
        """Remember a set; its number is its place in `sets`."""
        number = len(self.sets)
        self.sets.append(array("q", hashes))
        for member in self.rarest(hashes):
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
    """The word n-grams of a text, each with what is `beside`; of a text with fewer words all words as one.

    As 64-bit hashes, which take a fifth of the memory. They differ from process to process: never store them.
    """
    parts = words(text)
    if len(parts) <= length:
        return {hash((parts, beside))}
    # The words from the first on, from the second on, ... side by side.
    shifted = [parts[start:] for start in range(length)]
    return {hash((gram, beside)) for gram in zip(*shifted, strict=False)}


def _shingles(row: Row) -> set[int]:
    """The 3-grams of a question, each with the numbers and images of the row."""
    return ngrams(row.question, SHINGLE, *number_list(row.question), *row.images)
