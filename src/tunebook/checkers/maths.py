"""Is this answer right? One verifier for data checks, pairs and evaluation (Hugging Face's math-verify).

math-verify guards itself with `signal.alarm`, which works in a main thread only and cannot stop a long integer power.
So it runs in a process of its own (`python -m tunebook.checkers.maths`), which is killed when it takes too long; plain
numbers and equal strings never get that far.
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

TIMEOUT_S = 10.0


MAX_MEMORY = 4 * 2**30  # bytes of the process that compares


MAX_LENGTH = 400  # characters; a longer final answer is not one


@dataclass(frozen=True)
class Verdict:
    """What was found in an answer and whether it is right."""

    correct: bool
    parsed: str | None
    """The final answer as found, before it was normalised."""
    how: Literal["boxed", "last number", "none"]
    r"""Where it was found: in the last `\boxed{}`, as the last number of the text, or nowhere."""


def verifier() -> str:
    """Recorded with every score: scores of another version are not comparable without a look."""
    return f"tunebook-1/math-verify-{version('math-verify')}"


def verify(text: str, gold: str, *, boxed_only: bool = False) -> Verdict:
    r"""Compare the final answer in `text` with `gold` (a number or LaTeX, without `\boxed`).

    The last `\boxed{}` counts; without one the last number does, unless `boxed_only`.
    """
    found = boxed(text)
    if found is not None:
        return Verdict(bool(found.strip()) and equal(gold, found), found, "boxed")
    numbers = [] if boxed_only else re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?", text)
    if not numbers:
        return Verdict(False, None, "none")
    return Verdict(equal(gold, numbers[-1]), numbers[-1], "last number")


def boxed(text: str) -> str | None:
    r"""The content of the last closed `\boxed{...}`, braces inside it balanced; None when there is none."""
    opened: list[int] = []  # where what is in a brace begins; -1 for a brace of another kind
    start = end = -1
    for match in re.finditer(r"\\boxed\s*\{|[{}]", text):  # once through, however many are never closed
        if match[0] != "}":
            opened.append(match.end() if len(match[0]) > 1 else -1)
        elif opened and (last := opened.pop()) > start:
            start, end = last, match.start()
    return text[start:end] if start >= 0 else None


@functools.lru_cache(maxsize=100_000)
def equal(gold: str, answer: str) -> bool:
    """Whether two final answers are mathematically the same. False when in doubt or out of time."""
    if max(len(gold), len(answer)) > 10 * MAX_LENGTH:
        return False
    gold, answer = normalise(gold), normalise(answer)
    if not gold or not answer or max(len(gold), len(answer)) > MAX_LENGTH:
        return False
    if gold == answer:
        return True
    a, b = _number(gold), _number(answer)
    if a is not None and b is not None:
        return a == b
    return _worker.ask(gold, answer)


def normalise(answer: str) -> str:
    r"""Strip what does not change the value: `$`, spaces, degree signs, units, thousands' commas, `x =`, `\boxed`."""
    answer = boxed(answer) or answer
    answer = re.sub(r"\\(?:text|mathrm|mbox)\s*\{\s*([^{}]*)\}", r" \1", answer)
    answer = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|°|\bdegrees?\b", "", answer)
    answer = (
        re.sub(r"\\[,;:! ]|\\left|\\right|\$|\\%|%", "", answer)
        .replace("π", r"\pi")
        .replace("√", r"\sqrt")
        .strip(" .")
    )
    answer = re.sub(
        r"(?<=[\d\w}])\s+(?:square |cubic )?(?:cm|mm|dm|km|m|units?|metres?|meters?)(?:\s*\^\s*\{?[23]\}?|[²³])?$",
        "",
        answer,
    )
    answer = re.sub(r"^[a-zA-Z]\s*=\s*|^\\angle\s*\w+\s*=\s*", "", answer)
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer).strip()


def _number(text: str) -> Fraction | None:
    match = re.fullmatch(r"([-+]?\d{1,30}(?:\.\d{1,30})?)(?:/(\d{1,30}))?", text) or re.fullmatch(
        r"\\d?frac\{(-?\d{1,30})\}\{(\d{1,30})\}", text
    )
    with contextlib.suppress(ZeroDivisionError, ValueError):
        return Fraction(match[1]) / Fraction(match[2] or 1) if match else None
    return None


class _Worker:
    """math-verify in a process of its own, asked line by line, killed and restarted when it is too slow."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        atexit.register(self.stop)

    def ask(self, gold: str, answer: str) -> bool:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                command = [sys.executable, "-m", "tunebook.checkers.maths"]
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                if not self._reply(300):  # its imports
                    raise RuntimeError("the verifier does not start: try `python -m tunebook.checkers.maths`")
            assert self.process.stdin is not None  # noqa: S101 - for the type checker
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps([gold, answer]) + "\n")
                self.process.stdin.flush()
            reply = self._reply(TIMEOUT_S)
            if not reply:
                self.stop()
            return reply.strip() == "true"

    def _reply(self, timeout: float) -> str:
        assert self.process is not None and self.process.stdout is not None  # noqa: S101
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        return self.process.stdout.readline() if ready else ""

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


_worker = _Worker()


def _serve() -> None:
    """The worker's side: a line `[gold, answer]` in, `true` or `false` out."""
    import resource

    import math_verify

    resource.setrlimit(
        resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY)
    )  # 10^(10^10) would take the machine's before its time is up
    config = [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()]
    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer = (math_verify.parse(f"${part}$", config) for part in json.loads(line))
        print(json.dumps(bool(gold and answer and math_verify.verify(gold, answer))), flush=True)


if __name__ == "__main__":
    _serve()
