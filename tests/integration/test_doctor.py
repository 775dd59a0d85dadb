"""`tunebook doctor`: what it finds on this machine, and what it says of what is missing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    for name in ("API_KEY", "BASE_URL", "MODEL", "OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")


def test_this_machine(run_cli, tmp_path):
    env = os.environ | {"COLUMNS": "160", "API_KEY": "sk-very-secret", "UNSLOTH_FORCE_CPU": "1"}
    done = run_cli("doctor", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        platform.python_version(),
        "all as locked",
        "cpu (UNSLOTH_FORCE_CPU=1)",
        str(len(os.sched_getaffinity(0))),
        "API_KEY is set",
    ):
        assert said in done.stdout, said
    assert "sk-very-secret" not in done.stdout + done.stderr
    needs = {}
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if "│" in line and len(cells) == 2:
            needs[cells[0]] = cells[1]
    assert needs["smollm2-math"] == needs["mm-math-sample"] == needs["smollm2-alpaca"] == "nothing more"
    assert needs["qwen3-4b-instruct"].startswith("a CUDA GPU") and needs["gemma3n-mm-math"].startswith(
        "a CUDA GPU"
    )
    assert (
        "the data THU-KEG/MM_Math from the hub" in done.stdout
        and "the model unsloth/Qwen3-4B-Base from the hub" in done.stdout
    )


def test_neither_torch_nor_unsloth_is_imported():
    code = (
        "import sys; from tunebook import doctor; from tunebook.recipe.loading import load_recipe\n"
        "doctor.doctor(load_recipe())\n"
        "print([m for m in ('torch', 'transformers', 'unsloth') if m in sys.modules])"
    )
    env = os.environ | {"UNSLOTH_FORCE_CPU": "1"}
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    ).stdout.endswith("\n[]\n")
