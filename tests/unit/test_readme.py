"""What README, docs and CONTRIBUTING say is so: commands and paths exist, results are of the recorded run."""

from __future__ import annotations

import json
import os
import re

import pytest
import record

from tunebook.recipe.files import ROOT

README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
DOCS = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


def test_the_results_come_from_the_recorded_run():
    start, end = record.MARKS
    folder = ROOT / "resources" / "smollm2-math"
    assert README.split(start)[1].split(end)[0] == record.section(folder)
    assert RESULTS.split(start)[1].split(end)[0] == record.details(folder)
    # By hand, out of summary.json.
    assert "| sft | 600 | 45.0% (41.1 to 49.0) | 0% | +42.5 (+38.3 to +46.7) |" in README
    assert "| sft → dpo | 600 | +5.5 (+2.7 to +8.5) | 57 | 24 |" in RESULTS


def test_what_the_default_recipe_costs_elsewhere_comes_from_its_recorded_run():
    start, end = record.MARKS_ELSEWHERE
    folder = ROOT / "resources" / "smollm2-math"
    assert RESULTS.split(start)[1].split(end)[0] == record.elsewhere(folder)
    # By hand, out of summary.json.
    assert (
        "| following instructions | 40 | 47.5% | 23.8% | 20.0% | -27.5 (-43.7 to -11.3) | worse |" in RESULTS
    )
    assert (folder / "figures" / "skills.png").exists()


def test_the_results_of_own_answers_come_from_their_recorded_runs():
    start, end = record.MARKS
    page = (ROOT / "docs" / "own-answers.md").read_text()
    assert page.split(start)[1].split(end)[0] == record.together(record.own_answers())
    # By hand, out of summary.json.
    assert "| smollm2-instructions | dpo | 1500 | 38.7% (36.3 to 41.2) |" in page
    for folder in record.own_answers():
        assert json.loads((folder / "summary.json").read_text())["split"] == "test"


def test_the_recorded_manifest_is_enough_to_repeat_the_run():
    stages = json.loads((ROOT / "resources" / "smollm2-math" / "manifest.json").read_text())["stages"]
    assert {"data", "sft", "eval/base", "eval/sft"} <= set(stages)
    for stage in stages.values():
        assert {
            "recipe",
            "overrides",
            "seed",
            "git",
            "lock",
            "versions",
            "hardware",
            "started",
            "ended",
            "peak_memory_gb",
            "inputs",
        } <= set(stage)
    assert set(stages["data"]["fingerprints"]) == set(stages["data"]["rows"]) == {"train", "val", "test"}
    assert "/root/" not in json.dumps(stages) and "/home/" not in json.dumps(stages)


def test_ci_calls_the_test_command_of_the_readme():
    """In two parts: on its own, tests/unit would notice a module that is loaded against its rules."""
    block = re.search(r"## Tests\n+```bash\n(.+)\n```", README)[1]
    assert block == "pip install uv && uv run pytest -n 2 --dist loadfile"
    commands = re.findall(r"^uv run pytest -n 2 .*", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert sorted(re.findall(r"tests/(\w+)", " ".join(commands))) == sorted(folders)


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target


def test_paths_that_the_docs_name_exist():
    for path in re.findall(
        r"`((?:src|tests|scripts|benchmarks|resources|configs|prompt|notebooks)/[\w/.-]*)`", DOCS
    ):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_table_of_rooms_names_all_and_only_paths_that_there_are(page):
    text = (ROOT / page).read_text()
    source = ROOT / "src" / "tunebook"
    table = text.partition("## The rooms")[2].partition("Beside it")[0]
    names = re.findall(r"`(\w+(?:/|\.py))`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    rooms = {f"{path.name}/" for path in source.iterdir() if (path / "__init__.py").exists()}
    doors = {path.name for path in source.glob("*.py") if not path.name.startswith("__")}
    assert set(names) == rooms | doors
    for path in re.findall(r"`((?:src|tests|scripts|benchmarks|resources)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(
    "command",
    sorted(set(re.findall(r"uv run tunebook (\w+)", README + DOCS))),
)
def test_every_command_exists_and_its_help_teaches(run_cli, command):
    done = run_cli(command, "--help", env=os.environ | {"COLUMNS": "200", "TERM": "dumb"})
    assert done.returncode == 0, done.stderr
    assert f"tunebook {command}" in done.stdout
