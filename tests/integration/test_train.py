"""The notebooks of the data and of SFT, run by papermill."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import nbformat
import notebook_outputs
import pytest

from tunebook.recipe.files import ROOT

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.mark.usefixtures("forked_kernels")
def test_notebooks_run_under_papermill(tiny_recipe, tmp_path):
    """The README's line: the rate is a float in the notebook, the manifest and the optimiser.

    Data is prepared on the way. The second is a copy in another folder (papermill#316, papermill#268).
    """
    (tmp_path / "mine").mkdir()
    shutil.copy(ROOT / "notebooks" / "01_data_prep.ipynb", tmp_path / "mine" / "copy.ipynb")
    for name, notebook, folder, parameters in (
        ("02_sft", "notebooks/02_sft.ipynb", ROOT, ["-p", "lr", "2e-4", "-p", "max_steps", "3"]),
        ("01_data_prep", "copy.ipynb", tmp_path / "mine", ["-y", "{seed: 0, overrides: {sft.max_steps: 4}}"]),
    ):
        out = tmp_path / f"{name}.ipynb"
        command = [sys.executable, "-m", "papermill", notebook, str(out), *parameters]
        command += ["-p", "recipe", str(tiny_recipe), "--no-progress-bar"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        outputs = notebook_outputs.outputs(out)
        assert not [output for output in outputs if output.output_type == "error"]
        figures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert len(figures) == 1
        # A bar is gone when it has ended: of a saved widget no page can draw anything.
        assert not [output for output in outputs if WIDGET in output.get("data", {})]
        if name == "02_sft":
            notebook = nbformat.read(out, as_version=4)
            assert notebook.metadata.papermill.parameters["lr"] == 2e-4
    stage = json.loads((tmp_path / "runs" / "tiny" / "manifest.json").read_text())["stages"]["sft"]
    assert stage["recipe"]["sft"]["learning_rate"] == 2e-4
    assert isinstance(stage["recipe"]["sft"]["learning_rate"], float)
    assert stage["metrics"]["optimizer_learning_rate"] == 2e-4
    assert stage["metrics"]["steps"] == 3
