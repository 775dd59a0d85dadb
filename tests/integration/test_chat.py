"""Asking models: streaming, conversations, the terminal, the question box, the notebook."""

from __future__ import annotations

import json
from pathlib import Path

from tunebook.recipe.files import ROOT


def test_the_notebook_without_widgets(tiny_recipe, tmp_path, monkeypatch):
    import papermill

    out = tmp_path / "out.ipynb"
    given = {"recipe": str(tiny_recipe), "question": "How many?", "max_new_tokens": 8, "compare_items": 2}
    papermill.execute_notebook(
        str(ROOT / "notebooks" / "inference.ipynb"), str(out), given, cwd=str(ROOT), progress_bar=False
    )
    cells = [cell for cell in json.loads(Path(out).read_text())["cells"] if cell["cell_type"] == "code"]
    shown = [output["data"] for cell in cells for output in cell["outputs"] if "data" in output]
    assert any("".join(data.get("text/markdown", "")).startswith("**How many?**") for data in shown)
    table = "".join(
        next(data["text/html"] for data in shown if "<table" in "".join(data.get("text/html", "")))
    )
    assert table.count("<tr>") == 3 and table.count("answer: ") == 2 and ("✓" in table or "✗" in table)
    text = "".join("".join(output.get("text", "")) for cell in cells for output in cell["outputs"])
    assert "nothing is trained yet, so this is the base model" in text
