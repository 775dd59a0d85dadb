"""A notebook's parameters as papermill sets them: a misspelt one is refused, where papermill only warns."""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Iterable

from tunebook.recipe.errors import UserError, shorten
from tunebook.recipe.explain import TRAINER_WORDS

INJECTED = "# Parameters\n"
"""How the cell begins that papermill puts below the notebook's own cell of parameters."""


def check_parameters() -> None:
    """In a notebook that papermill runs: whether each parameter is one that the notebook has.

    Raises UserError that names the nearest one.
    """
    # Who runs no notebook has not imported IPython, and is not to wait for it.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None:
        check_cells(shell.user_ns.get("In", []))


def check_cells(cells: Iterable[str]) -> None:
    """The same, of the source of each cell that has been run so far."""
    known: list[str] = []
    for cell in cells:
        names = _assigned(cell)
        # A notebook of somebody else's may begin with such a comment too.
        if cell.startswith(INJECTED) and "recipe" in known:
            for name in names:
                if name not in known:
                    raise UserError(_unknown(name, known))
        known += names


def _assigned(cell: str) -> list[str]:
    """The names that a cell's lines give a value to: `lr = None`."""
    try:
        lines = ast.parse(cell).body
    except (SyntaxError, ValueError):
        return []
    names = []
    for line in lines:
        if isinstance(line, ast.Assign):
            names += [target.id for target in line.targets if isinstance(target, ast.Name)]
    return names


def _unknown(name: str, known: list[str]) -> str:
    # People try the trainer's own names: `learning_rate` is `lr` here.
    choices = {choice: choice for choice in known}
    for short, long in TRAINER_WORDS.items():
        for parameter in known:
            if TRAINER_WORDS.get(parameter) == long:
                choices[short] = choices[long] = parameter
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    hint = f", did you mean {choices[close[0]]}?" if close else "."
    return (
        f"unknown parameter {shorten(name)}{hint} This notebook has {', '.join(dict.fromkeys(known))}; "
        "any key of the recipe goes into overrides: -y '{overrides: {lora.r: 32}}'"
    )
