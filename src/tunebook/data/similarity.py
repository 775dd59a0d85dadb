"""Texts compared: near-duplicates, and train rows that hold a held-out question."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from tunebook.data.benchmark_items import benchmark_items
from tunebook.data.rows import Reject, Row, rejected
from tunebook.recipe.sections import Recipe

NGRAM = 8
"""Words in an n-gram for decontamination: between the 13 of GPT-3 and what short problems have at all."""


FEWEST = 4
"""Words of a question that is looked for inside longer texts. A shorter one ("Why?", "What is inflation?") is a phrase that others
hold too: only the same text counts."""


SHINGLE = 3
"""Words in a shingle for near-duplicates."""


PERMUTATIONS = 64
"""Hashes in a MinHash."""


SEEN = "in the test or val split"


Hashes = npt.NDArray[np.uint64]


NONE: Hashes = np.empty(0, np.uint64)


ODD: Hashes = np.random.default_rng(0).integers(0, 2**63, PERMUTATIONS, np.uint64) * np.uint64(2) + np.uint64(
    1
)
"""Factors of hashes: of the places in an n-gram, of the permutations of a MinHash."""


class Duplicates:
    """Exact and near-duplicates among the questions seen so far.

    Near means a Jaccard similarity of word shingles of at least `threshold` with the same numbers (and images): the numbers are part
    of every shingle. What may be similar is found by `signatures`; of many rows, only those that `alike` names need be checked.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.exact: dict[int, str] = {}
        self.shingles: dict[str, Hashes] = {}
        self.bands: dict[int, list[str]] = defaultdict(list)

    def check(self, row: Row) -> Reject | None:
        """Reject a duplicate, else remember the row."""
        text, *bands = signatures([row], self.threshold)[0].tolist()
        if text in self.exact:
            return rejected(row, "duplicate", f"of {self.exact[text]}")
        shingles = np.unique(_shingles([row])[0])
        for other in sorted({name for band in bands for name in self.bands[band]}):
            theirs = self.shingles[other]
            both = len(np.intersect1d(shingles, theirs, assume_unique=True))
            if both >= self.threshold * (len(shingles) + len(theirs) - both):
                return rejected(row, "near-duplicate", f"of {other}")
        self.exact[text], self.shingles[row.source_id] = row.source_id, shingles
        for band in bands:
            self.bands[band].append(row.source_id)
        return None


def signatures(rows: list[Row], threshold: float) -> Hashes:
    """Of each row a line of 64-bit hashes: of its whole question, then of the bands of a MinHash of its shingles (Broder 1997).

    Two questions with a Jaccard similarity of `threshold` share a band with a probability of 99.9% at least. Kept as plain arrays and
    compared by sorting (`alike`), a million rows take 100 MB; in the dictionaries of an LSH library they take over 10 GB.
    """
    width = next(
        w for w in range(PERMUTATIONS, 0, -1) if w == 1 or (1 - threshold**w) ** (PERMUTATIONS // w) <= 1e-3
    )
    bands = PERMUTATIONS // width
    shingles = _shingles(rows)
    starts = np.cumsum([0, *(len(part) for part in shingles[:-1])])
    minima: Hashes = np.minimum.reduceat(
        np.concatenate(shingles)[:, None] * ODD[: bands * width], starts
    ).reshape(len(rows), bands, width)
    texts = [_hash(" ".join([*words(row.question), *row.images])) for row in rows]
    keys: Hashes = (minima * ODD[:width]).sum(-1, np.uint64) + np.arange(bands, dtype=np.uint64)
    return np.column_stack([np.array(texts, np.uint64), mix(keys)])


def alike(found: Hashes) -> list[int]:
    """The rows of `signatures` that share the text or a band with another."""
    out = np.zeros(len(found), bool)
    for column in found.T:
        order = np.argsort(column, kind="stable")
        same = column[order[1:]] == column[order[:-1]]
        out[order[1:][same]] = out[order[:-1][same]] = True
    return [int(i) for i in np.flatnonzero(out)]


class Contamination:
    """Train rows that hold a question of `held_out`.

    A row is contaminated when it has at least `threshold` of a held-out question's word 8-grams (all its words in a row, where
    it has fewer: `FEWEST`) and all of its numbers, or one of its images. A question without a number is known by its image alone.

    So many n-grams of a question cannot be in a row without one of its rarest: only these are looked up (prefix filtering, Chaudhuri
    et al. 2006), in one sorted array.
    """

    def __init__(self, threshold: float, held_out: Iterable[Row], reason: str = SEEN) -> None:
        self.threshold, self.reason = threshold, reason
        self.items: list[tuple[str, Hashes, list[str]]] = []
        self.images: dict[str, str] = {}
        self.lengths: set[int] = set()
        """Of the items' n-grams, in words: rows are searched for no others."""
        for row in held_out:
            self.images |= dict.fromkeys(row.images, row.source_id)
            numbers = number_list(row.question)
            length = len(words(row.question)) if FEWEST <= len(words(row.question)) < NGRAM else NGRAM
            grams = ngram_hashes([row.question], length)[0] if numbers or not row.images else NONE
            self.lengths |= {length} if len(grams) else set()
            self.items.append((row.source_id, np.unique(grams), numbers))
        every, counts = np.unique(
            np.concatenate([NONE, *(grams for _, grams, _ in self.items)]), return_counts=True
        )
        rare = [
            grams[np.argsort(counts[np.searchsorted(every, grams)], kind="stable")][: self._enough(grams)]
            for _, grams, _ in self.items
        ]
        keys, item = np.concatenate([NONE, *rare]), np.repeat(np.arange(len(rare)), [len(r) for r in rare])
        order = np.argsort(keys, kind="stable")
        self.keys, self.item = keys[order], item[order]

    def _enough(self, grams: Hashes) -> int:
        """So many of an item's n-grams that a row which is contaminated by it has one of them."""
        return len(grams) - math.ceil(self.threshold * len(grams)) + 1

    def check(self, row: Row) -> Reject | None:
        return self.check_all([row])[0]

    def check_all(self, rows: list[Row]) -> list[Reject | None]:
        """Of each row why it is contaminated; None: it is not. Many together take a fraction of the time."""
        texts = [text for row in rows for text in (row.question, row.completion[0]["content"])]
        held = np.zeros(len(texts), bool)
        every = list(_ngrams(texts, sorted(self.lengths))) if rows and self.lengths else []
        for grams, starts in every:
            found = self.keys[np.minimum(np.searchsorted(self.keys, grams), len(self.keys) - 1)] == grams
            held |= np.logical_or.reduceat(found, starts[:-1])
        out = []
        for k, row in enumerate(rows):
            reject = next(
                (
                    rejected(row, SEEN, f"has the image of {self.images[name]}")
                    for name in row.images
                    if name in self.images
                ),
                None,
            )
            for i in (2 * k, 2 * k + 1):
                if not reject and held[i]:
                    reject = self._compare(
                        row,
                        texts[i],
                        np.concatenate([grams[starts[i] : starts[i + 1]] for grams, starts in every]),
                    )
            out.append(reject)
        return out

    def _compare(self, row: Row, text: str, grams: Hashes) -> Reject | None:
        """With every item that has one of its rarest n-grams there."""
        numbers = Counter(number_list(text))
        first, last = (np.searchsorted(self.keys, grams, side) for side in ("left", "right"))
        for i in np.unique(np.concatenate([self.item[a:b] for a, b in zip(first, last, strict=True)])):
            source_id, theirs, needed = self.items[i]
            if Counter(needed) <= numbers:
                count = len(np.intersect1d(grams, theirs))
                if count >= self.threshold * len(theirs):
                    return rejected(
                        row, self.reason, f"holds {count} of {len(theirs)} n-grams of {source_id}"
                    )
        return None


def benchmarks(recipe: Recipe) -> Contamination:
    """Against the benchmark items that lie on this machine (`evaluate.benchmarks.data`)."""
    return Contamination(recipe.data.contamination, benchmark_items(recipe), "in a benchmark")


@functools.lru_cache(maxsize=4_096)  # a batch's questions are asked for three times
def words(text: str) -> tuple[str, ...]:
    """Lower-case words and numbers, punctuation and layout aside."""
    return tuple(re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", text.lower()))


def ngram_hashes(texts: list[str], n: int, salts: list[str] | None = None) -> list[Hashes]:
    """Of each text the word n-grams (the whole text, where it has fewer words) as 64-bit hashes; another salt, other hashes."""
    ((grams, starts),) = _ngrams(texts, [n], salts)
    return np.split(grams, starts[1:-1])


def _ngrams(
    texts: list[str], lengths: list[int], salts: list[str] | None = None
) -> Iterator[tuple[Hashes, npt.NDArray[np.int64]]]:
    """Of each length the n-grams of all texts one after the other, and where each text's start (and the last's end)."""
    longest = max(lengths)
    tokens = [words(text) + ("",) * (longest - len(words(text))) for text in texts]
    sizes = np.array([len(part) for part in tokens])
    owner = np.repeat(np.arange(len(texts)), sizes)
    hashes = np.fromiter(map(_word_hash, itertools.chain.from_iterable(tokens)), np.uint64, len(owner))
    for n in lengths:
        grams = np.correlate(hashes, ODD[:n], "valid")
        if salts:
            grams += np.array([_hash(salt) for salt in salts], np.uint64)[owner[: len(grams)]]
        whole = owner[n - 1 :] == owner[: len(grams)]  # not across two texts
        yield mix(grams[whole]), np.cumsum([0, *(sizes - n + 1)])


def _shingles(rows: list[Row]) -> list[Hashes]:
    return ngram_hashes(
        [row.question for row in rows],
        SHINGLE,
        [" ".join(number_list(row.question) + row.images) for row in rows],
    )


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


_word_hash = functools.lru_cache(maxsize=200_000)(_hash)


def mix(values: Hashes) -> Hashes:
    """Scatter the bits of 64-bit integers (the finaliser of SplitMix64: Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def number_list(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:\.\d+)?", text))
