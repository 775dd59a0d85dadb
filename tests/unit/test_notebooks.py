"""What a reader of the notebooks sees: one step a cell, each under its heading."""

from __future__ import annotations

import inspect
import itertools
import json

import pytest

from tunebook.recipe.files import ROOT
from tunebook.training import dpo, sft

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# In the order in which the notebook and the command make these calls.
CALLS = {
    "02_sft": [
        "sft_rows",
        "sft_arguments",
        "preflight",
        "load_model",
        "add_lora",
        "sft_trainer",
        "audit_masks",
    ],
    "04_dpo": [
        "dpo_rows",
        "dpo_arguments",
        "preflight",
        "load_model",
        "add_policy",
        "dpo_trainer",
        "audit_step_0",
    ],
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_code_cell_has_its_heading(path):
    cells = json.loads(path.read_text())["cells"]
    assert cells[0]["source"][0].startswith("# ")
    for before, cell in itertools.pairwise(cells):
        if cell["cell_type"] == "code":
            assert before["cell_type"] == "markdown", cell["source"]
            assert before["source"][0].startswith("## "), before["source"]


@pytest.mark.parametrize(
    ("name", "function", "last"), [("02_sft", sft.sft, "train_sft"), ("04_dpo", dpo._dpo, "train_dpo")]
)
def test_a_notebook_makes_the_calls_of_its_command_a_cell_each(name, function, last):
    cells = []
    for cell in json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "import" not in source:
            cells.append(source)
    calls = [*CALLS[name], last]
    where = []
    for call in calls:
        (cell,) = [i for i, source in enumerate(cells) if f"{call}(" in source]
        where.append(cell)
    # Arguments and memory share a cell; each of the others has its own.
    assert where == sorted(where) and len(set(where)) == len(calls) - 1
    command = inspect.getsource(function)
    positions = [command.index(f"{call}(") for call in calls]
    assert positions == sorted(positions)
