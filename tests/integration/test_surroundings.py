"""Odd surroundings: locales, time zones, no home, no writable cache, folders with spaces and odd letters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunebook.models import backend
from tunebook.recipe.files import ROOT

SMALL = (
    "--set",
    "data.sources.0.train=20",
    "--set",
    "data.sources.0.val=2",
    "--set",
    "data.sources.0.test=4",
)
FINGERPRINT = "1cd3ba12d2f1c667"


def tunebook(*argv: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A command in a process that has no more of an environment than it is given, like `env -i`."""
    needed = {
        "PATH": os.defpath,
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HF_HUB_OFFLINE": "1",
        "TUNEBOOK_CACHE": str(backend.cache_dir()),
    }
    command = [sys.executable, "-m", "tunebook", *argv]
    return subprocess.run(
        command,
        cwd=cwd,
        env=needed | env,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


@pytest.fixture(scope="module")
def comma_locale(tmp_path_factory) -> dict[str, str]:
    """German, in an encoding of 256 letters; where it can't be made, plain C."""
    folder = tmp_path_factory.mktemp("locale")
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(folder / "de_DE")],
        capture_output=True,
        check=False,
    )
    return (
        {"LC_ALL": "de_DE", "LOCPATH": str(folder)}
        if made.returncode in (0, 1) and (folder / "de_DE").exists()
        else {"LC_ALL": "C"}
    )


@pytest.mark.parametrize("odd", ["no home, C locale, odd folder", "comma locale, no writable cache"])
def test_the_data_are_the_same_everywhere(odd, tmp_path, embedded, comma_locale):
    folder = tmp_path / "ein Ördner, с пробелом"
    folder.mkdir()
    env = {"LC_ALL": "C", "TZ": "Asia/Kathmandu", "TUNEBOOK_RUNS": "läufe"}
    if odd.startswith("comma"):
        env = {
            **comma_locale,
            "HOME": "/proc/nowhere",
            "HF_HOME": "/proc/nowhere/hf",
            "TZ": "Pacific/Apia",
            "TUNEBOOK_RUNS": str(tmp_path / "runs"),
        }
    done = tunebook("prepare", *SMALL, cwd=folder, **env)
    assert done.returncode == 0, done.stderr
    record = json.loads(
        (folder / env["TUNEBOOK_RUNS"] / "smollm2-math" / "data" / "stage.json").read_text(encoding="utf-8")
    )
    assert record["fingerprints"]["train"] == FINGERPRINT
    if odd.startswith("comma"):
        again = tunebook(
            "prepare", *SMALL, cwd=folder, **env | {"TZ": "Etc/GMT+12"}
        )  # the clock on the wall goes back
        assert again.returncode == 0 and "data is up to date" in again.stdout


def test_a_terminal_without_unicode_shows_what_it_can(tmp_path):
    recipe = (
        (ROOT / "configs" / "smollm2-math.yaml")
        .read_text(encoding="utf-8")
        .replace("data_license: mit", "data_license: frei → für alle")
    )
    (tmp_path / "odd.yaml").write_text(recipe, encoding="utf-8")
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": str(tmp_path)}
    done = tunebook(
        "run",
        "--dry-run",
        "--recipe",
        "odd.yaml",
        "--set",
        "export.data_license=apache-2.0",
        cwd=tmp_path,
        **env,
    )
    assert (
        done.returncode == 0 and "frei ? f?r alle -> apache-2.0" in done.stdout and "would run" in done.stdout
    ), done.stderr
