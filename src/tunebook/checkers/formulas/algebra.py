"""Whether two formulas are the same: math-verify reads them, and they are compared at points.

math-verify's own comparison rounds to six decimals and to fifteen digits, so that 1/2^99 equals 1/2^98. All
of it runs in a process of its own: only the end of its process ends an integer power that takes for ever.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import re
import select
import signal
import subprocess
import sys
import threading
from typing import Any

from tunebook.checkers.formulas.comparing import compare
from tunebook.checkers.formulas.numerals import Number, read_number

PROGRAM = "tunebook.checkers.formulas.algebra"
TIMEOUT_S = 5.0  # for one comparison, whatever it does
CPU_S = 0.8  # for one comparison, where Python can stop it: a machine that is busy changes no verdict
START_S = 300.0  # for the imports of the process that compares, on a machine that is busy
MAX_MEMORY = 4 * 2**30  # bytes of that process
MAX_POWER = 20_000  # the largest exponent and factorial
MAX_BRACKETS = 40  # of a kind in a formula
DIGITS = 400  # of a difference that is zero

# Values of variables: between 0 and 1, above 1, below 0, mixed, odd and even whole numbers.
_POINTS = (
    ("37/101", "53/103", "71/107", "89/109"),
    ("211/97", "307/89", "419/83", "523/79"),
    ("-131/67", "-151/71", "-37/73", "-89/79"),
    ("-173/61", "59/97", "101/43", "-47/89"),
    ("5", "7", "3", "9"),
    ("6", "4", "8", "2"),
)


class Worker:
    """The process that compares, asked line by line, killed and started again when it is too slow."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        atexit.register(self.stop)

    def ask(self, gold: str, answer: str) -> bool:
        """Whether a normalised answer is right. False when it takes too long."""
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
        command = [sys.executable, "-m", PROGRAM]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self.process = process
        if not _read_line(process, START_S):
            raise RuntimeError(f"the verifier does not start: try `python -m {PROGRAM}`")
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


def same_formulas(kind: str, gold: str, answer: str) -> bool:
    """Whether two formulas have the same value; or two differences are the same equation or inequality."""
    one = _parse(gold)
    other = _parse(answer)
    if one is None or other is None:
        return False
    if kind != "value":
        return _are_multiples(kind, one, other)
    if one == other:
        return True
    if not _names(one) | _names(other):
        return _agree(one, other) or _is_rounded(one, other, read_number(gold), read_number(answer))
    points = _at_points(one, other)
    if points:
        return all(_agree(left, right) for left, right in points)
    # What has no value at any point, such as f(x) + 1, is left to math-verify.
    import math_verify

    return bool(math_verify.verify(one, other, timeout_seconds=None))


def _are_multiples(kind: str, one: Any, other: Any) -> bool:
    """The same equation is a multiple, the same inequality a positive multiple."""
    ratios = [left / right for left, right in _at_points(one, other) if not _is_zero(right)]
    if len(ratios) < 2 or _is_zero(ratios[0]):
        return False
    if kind == "inequality" and ratios[0].evalf(10) < 0:
        return False
    return all(_agree(ratio, ratios[0]) for ratio in ratios[1:])


def _parse(text: str) -> Any:
    """A formula for SymPy; None where math-verify cannot read it whole, or where it would take too long."""
    from latex2sympy2_extended.latex2sympy2 import (  # type: ignore[import-untyped]
        ConversionConfig,
        latex2sympy,
    )
    from sympy import Expr  # type: ignore[import-untyped]

    text = re.sub(r"(\d+(?:\.\d+)?)°", r"(\\frac{\1\\pi}{180})", text)
    # Words are no products of letters, and `4 10/3` is not a number.
    letters = re.sub(r"\\[a-zA-Z]+", r"\\", text)
    if re.search(r"[a-zA-Z]{3}|(?<![_\d])\d+\s+[\d.]|°|%", letters) or _is_huge(text):
        return None
    # Its parser takes seconds over brackets that do not match, and over deep ones.
    brackets = [text.count(bracket) for bracket in "({[)}]"]
    if brackets[:3] != brackets[3:] or max(brackets) > MAX_BRACKETS:
        return None
    config = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
    try:
        formula = latex2sympy(_exact(text), conversion_config=config)
        # Sums and derivatives
        formula = formula.doit()
    except Exception:  # its parser raises whatever it likes
        return None
    return formula if isinstance(formula, Expr) else None


def _is_huge(text: str) -> bool:
    """Whether powers of powers, long factorials or binomials stand in a formula."""
    numbers = re.findall(r"\^\{?\(?-?(\d+)|(\d+)\)?!|\\binom\{(\d+)", text)
    for found in numbers:
        if int(next(filter(None, found))) > MAX_POWER:
            return True
    # 9^{9^{9}}; but 2^{3^{2}} is 512.
    tower = re.search(r"\^\{?\(?(\d+)\^\{?\(?(\d*)", text)
    if tower and (not tower[2] or int(tower[1]) ** min(int(tower[2]), 99) > MAX_POWER):
        return True
    return "!!" in text or bool(re.search(r"[)}]\s*!", text) and "^" in text)


def _exact(text: str) -> str:
    """Mixed numbers and decimals as fractions: SymPy's floats have sixteen digits."""
    text = re.sub(r"(?<![\d.}\w])\d+\s*\\frac\{\d+\}\{\d+\}", _as_fraction, text)
    return re.sub(r"\d*\.\d+|\d+\.(?!\d)", _as_fraction, text)


def _as_fraction(match: re.Match[str]) -> str:
    number = read_number(match[0])
    if number is None:
        return match[0]
    return rf"(\frac{{{number.value.numerator}}}{{{number.value.denominator}}})"


def _names(formula: Any) -> set[str]:
    return {symbol.name for symbol in formula.free_symbols} - {"i"}


def _at_points(one: Any, other: Any) -> list[tuple[Any, Any]]:
    """The values of two formulas at the points at which both have one."""
    names = sorted(_names(one) | _names(other))
    values = []
    for point in _POINTS:
        places = dict(zip(names, point * (1 + len(names) // len(point)), strict=False))
        left = _at(one, places)
        right = _at(other, places)
        if left is not None and right is not None:
            values.append((left, right))
    return values


def _at(formula: Any, places: dict[str, str]) -> Any:
    """The value of a formula at a point; None where it is not real, unless `i` stands in it."""
    import sympy

    values = {}
    for symbol in formula.free_symbols:
        if symbol.name != "i":
            values[symbol] = sympy.Rational(places[symbol.name])
    try:
        value = _with_i(formula.xreplace(values))
        rounded = value.evalf(30)
    except (RecursionError, ArithmeticError, TypeError, ValueError):
        return None
    if not rounded.is_number or rounded.has(sympy.nan, sympy.zoo, sympy.oo):
        return None
    is_real = abs(sympy.im(rounded)) < 1e-20 * (1 + abs(rounded))
    has_i = any(symbol.name == "i" for symbol in formula.free_symbols)
    return value if is_real or has_i else None


def _with_i(formula: Any) -> Any:
    """A formula with `i` as the imaginary unit."""
    import sympy

    i = {symbol: sympy.I for symbol in formula.free_symbols if symbol.name == "i"}
    return formula.xreplace(i)


def _agree(one: Any, other: Any) -> bool:
    return _is_zero(_with_i(one) - _with_i(other))


def _is_zero(formula: Any) -> bool:
    if formula.is_Rational:
        return bool(formula == 0)
    value = formula.evalf(15, maxn=DIGITS)
    # What is left of nothing has no digit that counts.
    return all(part == 0 or part._prec == 1 for part in value.as_real_imag())


def _is_rounded(one: Any, other: Any, *numbers: Number | None) -> bool:
    """Whether one of them is a long decimal that the other can be rounded to."""
    steps = [number.step for number in numbers if number]
    return bool(steps) and bool(abs((one - other).evalf(30)) < float(max(steps)))


class _Slow(BaseException):
    """The time of a comparison is up. Not an Exception, so that no library takes it for its own."""


def _stop(*_: object) -> None:
    raise _Slow


def _serve() -> None:
    """The worker's side: a line `[gold, answer]` in, `true` or `false` out."""
    import resource

    same_formulas("value", "x+1", r"\sqrt{2}")  # so that the first question waits for no import
    # 10^(10^10) would take the machine's memory before its time is up.
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    signal.signal(signal.SIGVTALRM, _stop)
    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        is_right = False
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
            is_right = compare(gold, answer, same_formulas)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        except (Exception, _Slow):
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(json.dumps(is_right), flush=True)


if __name__ == "__main__":
    _serve()
