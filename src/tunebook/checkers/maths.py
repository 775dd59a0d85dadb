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
    how: Literal["boxed", "last number", "none"]
    r"""Where it stands: in the last `\boxed{}`, as the last number of the text, or nowhere."""


def verifier() -> str:
    """Recorded with every score: scores of another version are not comparable without a look."""
    return f"tunebook-1/math-verify-{version('math-verify')}"


def verify(text: str, gold: str, *, boxed_only: bool = False) -> Verdict:
    r"""Compare the final answer in `text` with `gold` (a number or LaTeX, without `\boxed`).

    The last `\boxed{}` counts; without one the last number does, unless `boxed_only`.
    """
    answer = boxed(text)
    if answer is not None:
        return Verdict(bool(answer.strip()) and equal(gold, answer), answer, "boxed")
    numbers = [] if boxed_only else re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?", text)
    if not numbers:
        return Verdict(False, None, "none")
    return Verdict(equal(gold, numbers[-1]), numbers[-1], "last number")


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
