"""Figures of how a folder of Python reads, against the limits that CI holds.

    uv run python scripts/readability.py              the package
    uv run python scripts/readability.py tests        another folder: figures only

Counts are per 100 lines of code, so that folders of any size compare. For comparison, other code bases
for fine-tuning have 0.4 to 2.9 comprehensions, 0.5 to 1.7 conditional expressions and 7 to 35 comments.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "tunebook"
COLUMNS = 110

# The limits of the package: at most, and for comments at least.
LINES = 28_100
LONGEST_FILE = 350
LARGEST_FOLDER = 4_520
COMPREHENSIONS_PER_100 = 3.0
DOUBLE_COMPREHENSIONS = 2
CONDITIONALS_PER_100 = 2.0
NESTED_CONDITIONALS = 0
COMMENTS_PER_100 = 5.5
TOO_LONG = 0
LONG_FILES = {"recipe/sections.py"}
"""Files that may be long: a list of settings, each with its explanation."""

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Counts:
    """What is counted in a folder, file by file."""

    lines: int = 0
    code: int = 0
    characters: int = 0
    """Of all lines of code, without their indentation."""
    comments: int = 0
    too_long: int = 0
    """Lines of more than COLUMNS characters."""
    comprehensions: int = 0
    double_comprehensions: int = 0
    """Comprehensions with two `for`."""
    conditionals: int = 0
    """`a if b else c`."""
    nested_conditionals: int = 0
    unpackings: int = 0
    """`a, b = x, y`."""
    functions: list[int] = field(default_factory=list)
    """Lines of code of each function."""
    files: dict[str, int] = field(default_factory=dict)
    """Lines of each file."""

    def add(self, name: str, text: str) -> None:
        """Count another file."""
        tree = ast.parse(text)
        lines = text.splitlines()
        code = code_lines(lines, tree)
        self.files[name] = len(lines)
        self.lines += len(lines)
        self.code += len(code)
        self.characters += sum(len(lines[number - 1].strip()) for number in code)
        self.too_long += sum(len(line) > COLUMNS for line in lines)
        self.comments += sum(1 for _ in comments(text))
        for node in ast.walk(tree):
            self._add_node(node)
            if isinstance(node, FUNCTIONS):
                body = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                self.functions.append(sum(number in code for number in body))

    def _add_node(self, node: ast.AST) -> None:
        if isinstance(node, COMPREHENSIONS):
            self.comprehensions += 1
            self.double_comprehensions += len(node.generators) > 1
        elif isinstance(node, ast.IfExp):
            self.conditionals += 1
            parts = (node.test, node.body, node.orelse)
            self.nested_conditionals += any(isinstance(part, ast.IfExp) for part in parts)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            self.unpackings += isinstance(node.targets[0], ast.Tuple)

    def per_100(self, count: int) -> float:
        return 100 * count / max(1, self.code)

    def rooms(self) -> Counter[str]:
        """Lines of each folder."""
        lines: Counter[str] = Counter()
        for name, count in self.files.items():
            lines[name.partition("/")[0] if "/" in name else "."] += count
        return lines


def code_lines(lines: list[str], tree: ast.Module) -> set[int]:
    """The numbers of the lines that are neither empty, nor a comment, nor part of a docstring."""
    texts: set[int] = set()
    for node in ast.walk(tree):
        # A text that stands alone explains what is above it: a module, a function, an attribute.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code = set()
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.strip().startswith("#") and number not in texts:
            code.add(number)
    return code


def comments(text: str) -> Iterator[str]:
    """The comments for a reader; those for a linter or a type checker are none."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(("# noqa", "# type:", "# fmt:")):
            yield token.string


@dataclass
class Figure:
    """A row of the table."""

    name: str
    value: float
    at_most: float | None = None
    at_least: float | None = None
    digits: int = 0

    @property
    def is_over(self) -> bool:
        if self.at_most is not None:
            return self.value > self.at_most
        return self.at_least is not None and self.value < self.at_least

    def __str__(self) -> str:
        limit = ""
        if self.at_most is not None:
            limit = f"at most {self.at_most:g}"
        elif self.at_least is not None:
            limit = f"at least {self.at_least:g}"
        mark = "  <- over" if self.is_over else ""
        return f"{self.name:<48} {self.value:>8.{self.digits}f}   {limit}{mark}".rstrip()


def figures(counts: Counts) -> list[Figure]:
    """The table, with the limits of the package."""
    longest = max((lines for name, lines in counts.files.items() if name not in LONG_FILES), default=0)
    largest = max(counts.rooms().values(), default=0)
    lengths = counts.functions or [0]
    deciles = statistics.quantiles(lengths, n=10) if len(lengths) > 1 else lengths * 9
    comprehensions = counts.per_100(counts.comprehensions)
    conditionals = counts.per_100(counts.conditionals)
    unpackings = counts.per_100(counts.unpackings)
    remarks = counts.per_100(counts.comments)
    return [
        Figure("lines", counts.lines, at_most=LINES),
        Figure("lines of the longest file", longest, at_most=LONGEST_FILE),
        Figure("lines of the largest folder", largest, at_most=LARGEST_FOLDER),
        Figure("comprehensions per 100 lines of code", comprehensions, COMPREHENSIONS_PER_100, digits=2),
        Figure("comprehensions with two `for`", counts.double_comprehensions, DOUBLE_COMPREHENSIONS),
        Figure("conditional expressions per 100", conditionals, CONDITIONALS_PER_100, digits=2),
        Figure("nested conditional expressions", counts.nested_conditionals, NESTED_CONDITIONALS),
        Figure("`a, b = x, y` per 100", unpackings, digits=2),
        Figure("comments per 100", remarks, at_least=COMMENTS_PER_100, digits=2),
        Figure(f"lines of more than {COLUMNS} characters", counts.too_long, TOO_LONG),
        Figure("characters of a line of code, mean", counts.characters / max(1, counts.code)),
        Figure("lines of code of a function, median", statistics.median(lengths)),
        Figure("lines of code of a function, nine of ten below", deciles[-1]),
    ]


def measure(folder: Path) -> Counts:
    counts = Counts()
    for path in sorted(folder.rglob("*.py")):
        counts.add(path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8"))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=PACKAGE)
    folder = parser.parse_args().folder
    rows = figures(measure(folder))
    for row in rows:
        if folder.resolve() != PACKAGE:
            row.at_most = row.at_least = None
        print(row)
    sys.exit(any(row.is_over for row in rows))


if __name__ == "__main__":
    main()
