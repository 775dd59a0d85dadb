"""Is this answer right? One verifier for data checks, pairs and evaluation: Hugging Face's math-verify.

math-verify guards itself with `signal.alarm`, which works in a main thread only and cannot stop a long
integer power. So it runs in a process of its own (`python -m tunebook.checkers.maths`), which is killed when
it takes too long. Plain numbers and equal strings never get that far.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import re
import select
import subprocess
import sys
import threading
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from typing import Literal

TIMEOUT_S = 10.0  # for one comparison
START_S = 300.0  # for the imports of the process that compares, on a machine that is busy
MAX_MEMORY = 4 * 2**30  # bytes of that process
MAX_LENGTH = 400  # characters; a longer final answer is not one


@dataclass(frozen=True)
class Verdict:
    """What stands in an answer and whether it is right."""

    correct: bool
    parsed: str | None
    """The final answer as it stands there, before it is normalised."""
    how: Literal["boxed", "last number", "text", "none"]
    r"""Where it stands: in the last `\boxed{}`, as the last number of the text, in its words, or nowhere."""


def verifier() -> str:
    """Recorded with every score: scores of another version are not comparable without a look."""
    return f"tunebook-2/math-verify-{version('math-verify')}"


def verify(text: str, gold: str, *, boxed_only: bool = False) -> Verdict:
    r"""Compare the final answer in `text` with `gold` (without `\boxed`).

    The last `\boxed{}` counts. Without one, and unless `boxed_only`, the last number does; where `gold` is a
    word, a letter or a sentence, it is looked for at the end of the text.
    """
    answer = boxed(text)
    in_words = is_words(gold)
    if answer is not None:
        same_words = in_words and bool(_plain(answer)) and _plain(answer) == _plain(gold)
        return Verdict(bool(answer.strip()) and (same_words or equal(gold, answer)), answer, "boxed")
    if in_words and not boxed_only:
        return _verify_words(text, gold)
    numbers = [] if boxed_only else re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?", text)
    if not numbers:
        return Verdict(False, None, "none")
    return Verdict(equal(gold, numbers[-1]), numbers[-1], "last number")


def is_words(gold: str) -> bool:
    """Whether a gold answer is a word, a letter or a sentence, rather than a number or a formula."""
    if re.search(r"[\\$^=_{}]", gold):
        return False
    letters = re.findall(r"[^\W\d_]{2,}", gold)
    # `100 degrees` and `12 cm` are numbers; `It is 42.195 km long.` is a sentence. `x + 1` is a formula.
    if re.search(r"\d", gold):
        return len(letters) >= 3 and not re.search(r"^\s*[-+]?\d", gold)
    if len(letters) == 0:
        return bool(re.fullmatch(r"\W*[^\W\d_]\W*", gold)) and not re.search(r"[-+*/<>]", gold)
    return True


def _verify_words(text: str, gold: str) -> Verdict:
    """Look for a gold answer in words: at the end, in the last sentence, or as the first word by itself."""
    wanted = _plain(gold)
    found = _plain(text)
    last_sentence = _last_sentence(text)
    if found == wanted or found.endswith(f" {wanted}"):
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


def _letter(text: str, last_sentence: str) -> str | None:
    """The choice that a text makes: at its end, in its last sentence, or at its start."""
    # A letter at the end counts most; `A` before a word is an article, and `I` is a pronoun.
    end = re.search(r"(?<!\w)([^\W\d_])\W*$", text)
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
    """Whether two final answers are mathematically the same. False when in doubt or out of time."""
    if max(len(gold), len(answer)) > 10 * MAX_LENGTH:
        return False
    gold = normalise(gold)
    answer = normalise(answer)
    if not gold or not answer or max(len(gold), len(answer)) > MAX_LENGTH:
        return False
    if gold == answer:
        return True
    gold_number = _number(gold)
    answer_number = _number(answer)
    if gold_number is not None and answer_number is not None:
        return gold_number == answer_number
    return _worker.ask(gold, answer)


def normalise(answer: str) -> str:
    r"""Strip what does not change the value: `$`, spaces, degrees, units, thousands' commas, `x =`, a box."""
    answer = boxed(answer) or answer
    answer = re.sub(r"\\(?:text|mathrm|mbox)\s*\{\s*([^{}]*)\}", r" \1", answer)
    # degrees
    answer = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\bdegrees?\b", "", answer)
    # LaTeX's spaces, \left and \right, dollar and per cent signs
    answer = re.sub(r"\\[,;:! ]|\\left|\\right|\$|\\%|%", "", answer)
    answer = answer.replace("π", r"\pi").replace("√", r"\sqrt").strip(" .")
    # units of length, area and volume behind a number
    unit = r"(?:square |cubic )?(?:cm|mm|dm|km|m|units?|metres?|meters?)(?:\s*\^\s*\{?[23]\}?|[²³])?"
    answer = re.sub(rf"(?<=[\d\w}}])\s+{unit}$", "", answer)
    # `x =` and `\angle ABC =`
    answer = re.sub(r"^[a-zA-Z]\s*=\s*|^\\angle\s*\w+\s*=\s*", "", answer)
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer).strip()


def _number(text: str) -> Fraction | None:
    """A whole number, a decimal or a fraction of numbers; None for anything else."""
    match = re.fullmatch(r"([-+]?\d{1,30}(?:\.\d{1,30})?)(?:/(\d{1,30}))?", text)
    if match is None:
        match = re.fullmatch(r"\\d?frac\{(-?\d{1,30})\}\{(\d{1,30})\}", text)
    if match is None:
        return None
    try:
        return Fraction(match[1]) / Fraction(match[2] or 1)
    except (ZeroDivisionError, ValueError):
        return None


class _Worker:
    """math-verify in a process of its own, asked line by line, killed and restarted when it is too slow."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        atexit.register(self.stop)

    def ask(self, gold: str, answer: str) -> bool:
        with self.lock:
            process = self.process
            if process is None or process.poll() is not None:
                process = self._start()
            # A process that has just died reads no line, and gives no reply.
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps([gold, answer]), file=process.stdin, flush=True)
            reply = _read_line(process, TIMEOUT_S)
            if not reply:
                self.stop()
            return reply.strip() == "true"

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tunebook.checkers.maths"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self.process = process
        if not _read_line(process, START_S):
            raise RuntimeError("the verifier does not start: try `python -m tunebook.checkers.maths`")
        return process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def _read_line(process: subprocess.Popen[str], timeout: float) -> str:
    """The next line that a process writes; empty when it ends or takes too long."""
    assert process.stdout is not None  # noqa: S101 - for the type checker
    ready, _, _ = select.select([process.stdout], [], [], timeout)
    return process.stdout.readline() if ready else ""


_worker = _Worker()


def _serve() -> None:
    """The worker's side: a line `[gold, answer]` in, `true` or `false` out."""
    import resource

    import math_verify

    # 10^(10^10) would take the machine's memory before its time is up.
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    kinds = [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()]
    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer = (math_verify.parse(f"${part}$", kinds) for part in json.loads(line))
        equal = bool(gold and answer and math_verify.verify(gold, answer))
        print(json.dumps(equal), flush=True)


if __name__ == "__main__":
    _serve()
