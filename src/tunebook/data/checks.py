"""Is a row sound, new, and unseen by the test? Each check passes a row on or says why not.

Word n-grams are compared with the numbers of the text beside them: two problems of the same wording with
different numbers are different problems, so a generator's (or a textbook's) own phrases do not drown real copies.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from datasketch import MinHash, MinHashLSH

from tunebook.data.rows import Messages, Reject, Row
from tunebook.data.sources import benchmark_items
from tunebook.recipe import Recipe
from tunebook.verify import boxed, verify

NGRAM = 8
"""Words in an n-gram for decontamination: between the 13 of GPT-3 and what short problems have at all."""
SHINGLE = 3
"""Words in a shingle for near-duplicates."""
PERMUTATIONS = 64
"""Hashes in a MinHash."""
NOT_AN_ANSWER = re.compile(
    r"^\W*(error\b|api call failed|generation_error|traceback \(most recent|none\W*$|null\W*$|nan\W*$)"
    r"|^\W*(i'?m sorry,? but|i (can'?t|cannot|am unable to) (help|assist|answer|provide)|as an ai\b)",
    re.IGNORECASE,
)


def check_content(row: Row) -> Reject | None:
    """Empty text, turns out of order, error messages and refusals, and solutions that do not end in their own `gold` answer."""
    answer = row.completion[0]["content"]
    if not row.question.strip():
        return _reject(row, "empty prompt")
    if not answer.strip():
        return _reject(row, "empty completion")
    if broken := _broken_turn(row.prompt):
        return _reject(row, "broken turns", broken)
    if NOT_AN_ANSWER.search(answer):
        return _reject(row, "error text or refusal", answer[:80])
    if row.gold is not None and not (verdict := verify(answer, row.gold)).correct:
        return _reject(row, "wrong answer", f"ends in {verdict.parsed!r}, the answer is {row.gold!r}")
    if row.gold is None and boxed(answer) is not None:
        row.gold = boxed(answer)
    return None


def _broken_turn(prompt: Messages) -> str:
    """What is wrong with the turns of a prompt, which ends with the user's; empty when nothing is."""
    turns = prompt[1:] if prompt[0]["role"] == "system" else prompt
    for i, message in enumerate(turns):
        expected = "user" if i % 2 == 0 else "assistant"
        if message["role"] != expected:
            return f"turn {i + 1} is the {message['role']}'s, the {expected}'s is expected"
        if not message["content"].strip():
            return f"turn {i + 1} is empty"
    return ""


def control_tokens(tokenizer: Any) -> Callable[[Row], Reject | None]:
    """A check for text that holds one of the tokenizer's own control tokens, such as `<|im_end|>`: rendered, it would end the turn."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    tokens = {t.content for t in inner.added_tokens_decoder.values() if t.special and t.content.strip()}
    found = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")

    def check(row: Row) -> Reject | None:
        match = next((m for message in row.prompt + row.completion if (m := found.search(message["content"]))), None)
        return _reject(row, "control token in the text", match[0]) if match else None

    return check


def check_length(row: Row, limit: int) -> Reject | None:
    """Rows that the trainer would have to cut."""
    return _reject(row, "too long", f"{row.tokens} tokens, max_seq_length is {limit}") if row.tokens > limit else None


class Duplicates:
    """Exact and near-duplicates among the questions seen so far.

    Near means a Jaccard similarity of word shingles of at least `threshold` (MinHash LSH: Broder 1997, `datasketch`)
    with the same numbers (and images): the numbers are part of every shingle.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.exact: dict[str, str] = {}
        self.rows: dict[str, Row] = {}
        self.lsh = MinHashLSH(threshold=0.8 * threshold, num_perm=PERMUTATIONS)  # finds candidates; a lower bar misses fewer

    def check(self, row: Row) -> Reject | None:
        """Reject a duplicate, else remember the row."""
        text = " ".join([*words(row.question), *row.images])
        if text in self.exact:
            return _reject(row, "duplicate", f"of {self.exact[text]}")
        shingles = self._shingles(row)
        minhash = MinHash(num_perm=PERMUTATIONS)
        minhash.update_batch([shingle.encode() for shingle in shingles])
        for other in sorted(self.lsh.query(minhash)):
            theirs = self._shingles(self.rows[other])
            if len(shingles & theirs) >= self.threshold * len(shingles | theirs):
                return _reject(row, "near-duplicate", f"of {other}")
        self.exact[text], self.rows[row.source_id] = row.source_id, row
        self.lsh.insert(row.source_id, minhash, check_duplication=False)
        return None

    @staticmethod
    def _shingles(row: Row) -> set[str]:
        numbers = " ".join(number_list(row.question) + row.images)
        return {f"{shingle}|{numbers}" for shingle in ngrams(row.question, SHINGLE)}


class Contamination:
    """Train rows that hold a question of `held_out`.

    A row is contaminated when it has at least `threshold` of a held-out question's word 8-grams (all its words, where
    it has fewer) and all of its numbers, or one of its images. A question without a number is known by its image alone.
    """

    def __init__(self, threshold: float, held_out: Iterable[Row], reason: str = "in the test or val split") -> None:
        self.threshold, self.reason = threshold, reason
        self.index: dict[str, set[int]] = defaultdict(set)
        self.items: list[tuple[str, int, Counter[str]]] = []
        self.images: dict[str, str] = {}
        for row in held_out:
            self.images |= dict.fromkeys(row.images, row.source_id)
            grams = ngrams(row.question, NGRAM) if not row.images or number_list(row.question) else set()
            for gram in grams:
                self.index[gram].add(len(self.items))
            self.items.append((row.source_id, len(grams), Counter(number_list(row.question))))

    def check(self, row: Row) -> Reject | None:
        if seen := next((self.images[name] for name in row.images if name in self.images), None):
            return _reject(row, "in the test or val split", f"has the image of {seen}")
        for text in (row.question, row.completion[0]["content"]):
            hits = Counter(item for gram in ngrams(text, NGRAM) for item in self.index.get(gram, ()))
            numbers = Counter(number_list(text))
            for item, count in hits.items():
                source_id, size, needed = self.items[item]
                if count >= self.threshold * size and needed <= numbers:
                    return _reject(row, self.reason, f"holds {count} of {size} n-grams of {source_id}")
        return None


def benchmarks(recipe: Recipe) -> Contamination:
    """Against the benchmark items that lie on this machine (`evaluate.benchmarks.data`)."""
    return Contamination(recipe.data.contamination, benchmark_items(recipe), "in a benchmark")


def words(text: str) -> list[str]:
    """Lower-case words and numbers, punctuation and layout aside."""
    return re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", text.lower())


def ngrams(text: str, n: int) -> set[str]:
    """The set of word n-grams; of a text with fewer words, the whole text."""
    tokens = words(text)
    return {" ".join(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))}


def number_list(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:\.\d+)?", text))


def accepted(rows: Iterable[Row | Reject], checks: list[Callable[[Row], Reject | None]]) -> Iterator[Row | Reject]:
    """Put each row through the checks in order; the first that rejects it decides."""
    for row in rows:
        if isinstance(row, Row):
            yield next((reject for check in checks if (reject := check(row))), row)
        else:
            yield row


def _reject(row: Row, reason: str, detail: str = "") -> Reject:
    return Reject(row.source_id, reason, detail, {"prompt": row.prompt, "completion": row.completion, "gold": row.gold})
