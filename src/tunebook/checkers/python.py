"""A user's function as a checker: `my_checks.py:score`, called as TRL calls its reward functions.

def score(prompts, completions, **columns):
    return [float("thank" in messages[-1]["content"]) for messages in completions]
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunebook.checkers.texts import Scores
from tunebook.recipe.errors import UserError, first_line, shorten
from tunebook.recipe.sections import CheckerConfig


def python(config: CheckerConfig, prompts: list[Any], completions: list[Any], **columns: Any) -> Scores:
    """The scores of the user's function.

    Raises UserError in one line when the function raises, or returns what are no scores.
    """
    path, function = load(config)
    try:
        result = function(prompts=prompts, completions=completions, **columns)
    except Exception as error:
        raise UserError(_what_went_wrong(error, path)) from None
    return scores_of(result, len(completions))


def load(config: CheckerConfig) -> tuple[Path, Callable[..., Any]]:
    """The file and the function that a checker's name says. Raises UserError when it cannot be loaded."""
    file, _, name = config.name.rpartition(":")
    path = config.find_file(file)
    return path, _function(path, name)


@functools.cache
def _function(path: Path, name: str) -> Callable[..., Any]:
    sys.path.append(str(path.parent))  # where its own imports lie
    # A name that no module has: a file may be called `json.py`.
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # noqa: S101 - for the type checker
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(_what_went_wrong(error, path)) from None
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{path.name} has no function {name}")
    # TRL's trainers hand on every column of a row, and so does this.
    try:
        inspect.signature(function).bind(prompts=[], completions=[], any_column=[])
    except TypeError:
        raise UserError(f"write it as `def {name}(prompts, completions, **columns)`") from None
    loaded: Callable[..., Any] = function
    return loaded


def scores_of(result: Any, count: int) -> Scores:
    """What a user's function returned as scores. Raises UserError for what are none."""
    if not isinstance(result, list | tuple):
        raise UserError(f"returned {shorten(result)}, not a list with a score for each answer")
    if len(result) != count:
        raise UserError(f"returned {len(result)} scores for {count} answers")
    scores: Scores = []
    for value in result:
        if value is None:
            scores.append(None)
            continue
        # Booleans, numbers of NumPy and tensors with one value are numbers too.
        try:
            score = float(value)
        except (TypeError, ValueError):
            raise UserError(f"returned {shorten(value)}, a score is a number or None") from None
        if not 0 <= score <= 1:
            raise UserError(f"returned {shorten(value)}, scores are from 0 to 1")
        scores.append(score)
    return scores


def _what_went_wrong(error: Exception, path: Path) -> str:
    """An error in one line, with the line of the user's file that raised it."""
    line = getattr(error, "lineno", None)  # of a file that is no Python
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename) == path:
            line = frame.lineno
    where = f" (line {line})" if line else ""
    return f"raised {type(error).__name__}: {shorten(first_line(error), 200)}{where}"
