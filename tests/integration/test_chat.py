"""The inference notebook, run by papermill."""

from __future__ import annotations

import notebook_outputs
import pytest

from tunebook.recipe.files import ROOT


@pytest.mark.usefixtures("forked_kernels")
def test_the_notebook_without_widgets(tiny_recipe, tmp_path):
    import papermill

    out = tmp_path / "out.ipynb"
    given = {"recipe": str(tiny_recipe), "question": "How many?", "max_new_tokens": 8, "compare_items": 2}
    papermill.execute_notebook(
        str(ROOT / "notebooks" / "inference.ipynb"), str(out), given, cwd=str(ROOT), progress_bar=False
    )
    outputs = notebook_outputs.outputs(out)
    shown = [output["data"] for output in outputs if "data" in output]
    assert any("".join(data.get("text/markdown", "")).startswith("**How many?**") for data in shown)
    table = "".join(
        next(data["text/html"] for data in shown if "<table" in "".join(data.get("text/html", "")))
    )
    assert table.count("<tr>") == 3 and table.count("answer: ") == 2 and ("✓" in table or "✗" in table)
    text = "".join(output.get("text", "") for output in outputs)
    assert "nothing is trained yet, so this is the base model" in text
