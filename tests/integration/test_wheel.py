"""An installed wheel in an empty folder, as a stranger has it.

The heavy packages are those of this environment (a `.pth` file): only tunebook itself is installed anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tunebook.recipe.files import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The programs of a new environment with the wheel in it."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(["uv", "build", "--wheel", "--quiet", "--out-dir", str(place), str(ROOT)], check=True)
    (wheel,) = place.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(place / "env")], check=True)
    programs = place / "env" / "bin"
    subprocess.run([programs / "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    (site,) = (place / "env" / "lib").glob("*/site-packages")
    # A path in a .pth file brings the packages in it, and not its own .pth files: not this checkout.
    (site / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return programs


def test_from_an_empty_folder_to_an_answer(installed, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TUNEBOOK", "UV_RUN"))}
    folder = tmp_path / "empty"
    folder.mkdir()

    def run(*command: str, cwd: Path = folder) -> str:
        program = str(installed / "tunebook")
        words = [program, *command] if command[0] != "papermill" else [sys.executable, "-m", *command]
        if command[0] == "papermill":
            words[0] = str(installed / "python")
        done = subprocess.run(
            words, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    where = subprocess.run(
        [installed / "python", "-c", "import tunebook; print(tunebook.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    ).stdout
    assert str(ROOT) not in where
    assert "smollm2-math" in run("recipes")
    assert "smollm2-math" in run("doctor")
    run("new", "mine")
    project = folder / "mine"
    few = [
        "--set",
        "data.sources.0.train=12",
        "--set",
        "data.sources.0.val=0",
        "--set",
        "data.sources.0.test=3",
    ]
    said = run("prepare", *few, cwd=project)
    assert "Next: tunebook sft" in said  # and not `uv run`, by which it was not started
    assert (project / "runs" / "smollm2-math" / "data" / "train.parquet").is_file()
    overrides = "{overrides: {data.sources.0.train: 12, data.sources.0.val: 0, data.sources.0.test: 3}}"
    run(
        *("papermill", "notebooks/02_sft.ipynb", "out.ipynb", "-p", "max_steps", "3", "-y", overrides),
        cwd=project,
    )
    assert (project / "runs" / "smollm2-math" / "sft" / "adapter" / "adapter_model.safetensors").is_file()
    answer = run("chat", "--question", "How long is a day?", "--max-new-tokens", "8", *few, cwd=project)
    assert answer.strip()
    # Nothing was written into the installed package.
    assert not list(installed.parent.glob("**/runs/smollm2-math"))
