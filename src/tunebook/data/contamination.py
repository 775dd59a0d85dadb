"""Train rows that hold a held-out question, an item of a benchmark or of the retention suite."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable

from tunebook.data.benchmark_items import benchmark_items
from tunebook.data.retention_items import retention_rows
from tunebook.data.rows import Reject, Row, rejected
from tunebook.data.similarity import SAMPLE, UNSPACED, Index, ngrams, number_list, words
from tunebook.recipe.sections import Recipe

# Words in an n-gram for decontamination: between the 13 of GPT-3 and what short problems have at all.
NGRAM = 8

# Words of a question that is looked for inside longer texts. A shorter one ("Why?", "What is inflation?") is
# a phrase that others hold too: only the same text counts.
FEWEST = 4

# The same in characters, for texts that are written without spaces.
CHARACTERS = 13
FEWEST_CHARACTERS = 8

# A phrase in so many questions of these, and in so large a share of them, belongs to an instruction that
# stands before many questions. It is no sign that two of them are the same.
FEWEST_WITH_PHRASE = 3
SHARE_WITH_PHRASE = 0.05

SEEN = "in the test or val split"


class Contamination:
    """Finds rows that hold a question of `held_out`.

    A row is contaminated when its question or its answer has at least `threshold` of a held-out question's
    word 8-grams (all its words in a row, where it has fewer: `FEWEST`) and all of its numbers, or when it has
    one of its images. A question without a number is known by its image alone. Of a question that is written
    without spaces n-grams of characters count.

    An instruction that stands before many questions is left out of each, unless nothing else would be left.

    Args:
        threshold: From 0 to 1.
        held_out: The rows whose questions are looked for.
        reason: Why a row that holds one is rejected.
        others: Rows beside these, in which phrases that many questions share are counted too.
    """

    def __init__(
        self, threshold: float, held_out: Iterable[Row], reason: str = SEEN, others: Iterable[Row] = ()
    ) -> None:
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
                length = _ngram_length(row.question)
                self.lengths.add(length)
                self.source_ids.append(row.source_id)
                self.numbers.append(numbers)
                questions.append(array("q", ngrams(row.question, length)))
        step = len(questions) // SAMPLE + 1
        shared = self._in_many(questions[::step], others)
        for number, question in enumerate(questions):
            # Not of one that is asked again and again: there all n-grams are in many.
            questions[number] = array("q", set(question) - shared) or question
        self.ngrams = Index(threshold, questions[::step])
        for question in questions:
            self.ngrams.add(question, self.ngrams.rarest(question))

    def _in_many(self, questions: list[array[int]], others: Iterable[Row]) -> set[int]:
        """The n-grams that many questions share."""
        counts = Counter[int]()
        for question in questions:
            counts.update(question)
        texts = len(questions)
        for row in others:
            counts.update(self._ngrams(row.question))
            texts += 1
        least = max(FEWEST_WITH_PHRASE, SHARE_WITH_PHRASE * texts)
        return {gram for gram, count in counts.items() if count >= least}

    def check(self, row: Row) -> Reject | None:
        """Reject a row that holds a held-out question or image."""
        for image in row.images:
            if image in self.ids_by_image:
                return rejected(row, self.reason, f"has the image of {self.ids_by_image[image]}")
        # Each by itself: the numbers of a question must stand beside its words.
        for text in (row.question, row.answer):
            match = self._match(text)
            if match:
                return rejected(row, self.reason, match)
        return None

    def _match(self, text: str) -> str:
        """Which held-out question a text holds, and how much of it; empty when none."""
        grams = self._ngrams(text)
        numbers = Counter(number_list(text))
        for number in sorted(self.ngrams.lookup(grams)):
            question = self.ngrams.sets[number]
            shared = len(grams.intersection(question))
            has_numbers = Counter(self.numbers[number]) <= numbers
            if has_numbers and shared >= self.threshold * len(question):
                return f"holds {shared} of {len(question)} n-grams of {self.source_ids[number]}"
        return ""

    def _ngrams(self, text: str) -> set[int]:
        """The n-grams of a text, of all lengths that questions have."""
        grams = set[int]()
        for length in self.lengths:
            grams |= ngrams(text, length)
        return grams


def retention(recipe: Recipe) -> Contamination:
    """Against the retention suite, whether the recipe asks for it now or not: it may later."""
    return Contamination(recipe.data.contamination, retention_rows(), "in the retention suite")


def benchmarks(recipe: Recipe) -> Contamination:
    """Against the benchmark items that lie on this machine (`evaluate.benchmarks.data`)."""
    return Contamination(recipe.data.contamination, benchmark_items(recipe), "in a benchmark")


def _ngram_length(question: str) -> int:
    """How many words, or characters, of a held-out question are looked for in a row."""
    parts = words(question)
    characters = sum(1 for part in parts if re.fullmatch(f"[{UNSPACED}]", part))
    fewest, most = FEWEST, NGRAM
    if 2 * characters > len(parts):
        fewest, most = FEWEST_CHARACTERS, CHARACTERS
    return len(parts) if fewest <= len(parts) < most else most
