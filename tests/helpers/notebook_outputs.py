"""What notebooks that have run show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat


def outputs(path: Path) -> list[Any]:
    """The outputs of all code cells, in order."""
    shown = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            shown += cell.outputs
    return shown
