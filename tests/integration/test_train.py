"""The notebooks of the data and of SFT, run by papermill."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import notebook_outputs
import pytest

from tunebook.recipe.files import ROOT


@pytest.mark.usefixtures("forked_kernels")
def test_notebooks_run_under_papermill(tiny_recipe, tmp_path):
    """The README's line: the rate is a float in the notebook, the manifest and the optimiser.

    Data is prepared on the way.
    """
    for name, parameters in (
        ("02_sft", ["-p", "lr", "2e-4", "-p", "max_steps", "3"]),
        ("01_data_prep", ["-p", "seed", "0"]),
    ):
        out = tmp_path / f"{name}.ipynb"
        command = [sys.executable, "-m", "papermill", f"notebooks/{name}.ipynb", str(out), *parameters]
        command += ["-p", "recipe", str(tiny_recipe), "--no-progress-bar"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        outputs = notebook_outputs.outputs(out)
        assert not [output for output in outputs if output.output_type == "error"]
        figures = [output for output in outputs if "image/png" in output.get("data", {})]
        assert len(figures) == 1
        if name == "02_sft":
            notebook = nbformat.read(out, as_version=4)
            assert notebook.metadata.papermill.parameters["lr"] == 2e-4
    stage = json.loads((tmp_path / "runs" / "tiny" / "manifest.json").read_text())["stages"]["sft"]
    assert stage["recipe"]["sft"]["learning_rate"] == 2e-4
    assert isinstance(stage["recipe"]["sft"]["learning_rate"], float)
    assert stage["metrics"]["optimizer_learning_rate"] == 2e-4
    assert stage["metrics"]["steps"] == 3


@pytest.mark.usefixtures("forked_kernels")
def test_papermill_from_anywhere_with_a_copied_notebook(tiny_recipe, tmp_path):
    """papermill#316, #268 (folders), #345 (dates), #251, #638, #856 (kernels)."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(ROOT / "notebooks" / "01_data_prep.ipynb", elsewhere / "mine.ipynb")

    def papermill(notebook: Path, run: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / f"{run}.ipynb"), *options]
        command += ["--no-progress-bar"]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)

    def rows(run: str) -> int:
        record = json.loads((tmp_path / "runs" / run / "data" / "stage.json").read_text())
        return record["rows"]["test"]

    # 1) a copy in another folder, beside which the recipe lies; a date and a raw number as names
    shutil.copy(tiny_recipe, elsewhere / "mine.yaml")
    options = [
        "-y",
        "{recipe: mine.yaml, run: 2024-05-01, overrides: {data.sources.0.test: 5}}",
        "-r",
        "seed",
        "7",
    ]
    done = papermill(elsewhere / "mine.ipynb", "2024-05-01", *options, cwd=elsewhere)
    assert done.returncode == 0, done.stderr[-2000:]
    assert rows("2024-05-01") == 5
    manifest = json.loads((tmp_path / "runs" / "2024-05-01" / "manifest.json").read_text())
    assert manifest["stages"]["data"]["seed"] == 7
    # 2) the shipped notebook, with --cwd: the recipe is looked for there
    options = ["-p", "recipe", "mine.yaml", "-p", "run", "there", "--cwd", str(elsewhere)]
    done = papermill(ROOT / "notebooks" / "01_data_prep.ipynb", "there", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert rows("there") == 24
    # 3) a kernel that is not there is named
    done = papermill(elsewhere / "mine.ipynb", "no", "-k", "nosuch", cwd=elsewhere)
    assert done.returncode != 0 and "No such kernel named nosuch" in done.stderr
