"""What the README says is so: its commands exist, its results come from the recorded run."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

from tunebook.recipe.files import ROOT

README = (ROOT / "README.md").read_text()


def test_the_version_is_that_of_the_package():
    command = [sys.executable, "-m", "tunebook", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{importlib.metadata.version('tunebook')}\n"


def test_shell_scripts_parse_and_pass_options_on(tmp_path):
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "$@"\n')
    uv.chmod(0o755)
    for script, command in (("train_sft.sh", "sft"), ("train_dpo.sh", "dpo")):
        done = subprocess.run(
            ["bash", str(ROOT / script), "--set", "a=b c"],
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
        assert done.stdout.strip().endswith(f"tunebook {command} --set a=b c")
        missing = subprocess.run(
            ["/bin/bash", str(ROOT / script)],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": "/bin:/usr/bin"},
        )
        assert missing.returncode == 2 and "pip install uv" in missing.stderr
