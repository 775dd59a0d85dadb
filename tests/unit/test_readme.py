"""What the README says is so: its commands exist, its results come from the recorded run."""

from __future__ import annotations

import importlib.util
import json
import re

from tunebook.recipe.files import ROOT

README = (ROOT / "README.md").read_text()


def test_the_results_come_from_the_recorded_run():
    spec = importlib.util.spec_from_file_location("record", ROOT / "scripts" / "record.py")
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    start, end = record.MARKS
    assert README.split(start)[1].split(end)[0] == record.section(ROOT / "resources" / "smollm2-math")


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
    block = re.search(r"## Tests\n+```bash\n(.+)\n```", README)[1]
    assert block == "pip install uv && uv run pytest -n 2 --dist loadfile"
    assert "\nuv run pytest -n 2 --dist loadfile\n" in (ROOT / ".ci" / "run").read_text()


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
