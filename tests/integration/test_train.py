"""SFT and evaluation for real: the embedded model and a tiny one, through Unsloth and TRL."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import nbformat
import pytest

from tunebook.recipe.files import ROOT


@pytest.fixture(scope="module", autouse=True)
def unsloth():
    from tunebook.models import backend

    assert backend.backend() == "cpu"


def test_notebooks_run_under_papermill(tiny_recipe, tmp_path):
    """The README's line: the rate is a float in the notebook, the manifest and the optimiser.

    Data is prepared on the way.
    """
    for name, parameters in (
        ("02_sft", ["lr", "2e-4", "-p", "max_steps", "3"]),
        ("01_data_prep", ["seed", "0"]),
    ):
        out = tmp_path / f"{name}.ipynb"
        command = [
            sys.executable,
            "-m",
            "papermill",
            f"notebooks/{name}.ipynb",
            str(out),
            "-p",
            *parameters,
            "-p",
            "recipe",
            str(tiny_recipe),
        ]
        done = subprocess.run(
            [*command, "--no-progress-bar"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        notebook = nbformat.read(out, as_version=4)
        assert not [
            o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"
        ]
        figures = [
            o
            for c in notebook.cells
            if c.cell_type == "code"
            for o in c.outputs
            if "image/png" in o.get("data", {})
        ]
        assert len(figures) == 1
        if name == "02_sft":
            assert notebook.metadata.papermill.parameters["lr"] == 2e-4
    stage = json.loads((tmp_path / "runs" / "tiny" / "manifest.json").read_text())["stages"]["sft"]
    assert stage["recipe"]["sft"]["learning_rate"] == 2e-4
    assert isinstance(stage["recipe"]["sft"]["learning_rate"], float)
    assert stage["metrics"]["optimizer_learning_rate"] == 2e-4
    assert stage["metrics"]["steps"] == 3
