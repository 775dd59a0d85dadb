"""The report card out of a recorded run, and runs side by side."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tunebook.evaluation import report, tables
from tunebook.evaluation.compare import compare_runs
from tunebook.evaluation.held_out import LOSSES, summarise_losses
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe

RECORD = ROOT / "resources" / "smollm2-math"


@pytest.fixture
def run(tmp_path) -> Path:
    """The recorded run's JSON with ten items' predictions.

    SFT wins all over base, DPO loses one and wins none.
    """
    run = tmp_path / "recorded"
    for stage, marks in (("base", [0] * 10), ("sft", [1] * 9 + [0]), ("dpo", [1] * 8 + [0] * 2)):
        folder = run / "eval" / stage
        folder.mkdir(parents=True)
        for i, mark in enumerate(marks):
            item = {
                "index": i,
                "source_id": f"s{i}",
                "prompt": f"question {i}?",
                "gold": "4",
                "correct": bool(mark),
                "answer": f"{stage} says {i}",
            }
            with (folder / "predictions.jsonl").open("a") as out:
                out.write(json.dumps(item) + "\n")
    shutil.copy(RECORD / "manifest.json", run)
    shutil.copy(RECORD / "summary.json", run / "eval")
    (run / "sft").mkdir()
    shutil.copy(RECORD / "metrics.jsonl", run / "sft")
    return run


def test_the_report_says_what_was_recorded_and_stands_alone(run):
    markdown, page = report.write(run)
    text, html = markdown.read_text(), page.read_text()
    summary = json.loads((RECORD / "summary.json").read_text())
    assert tables.accuracy_table(summary["stages"]).markdown() in text
    assert "**sft against base: better**" in text and "**dpo against sft: better**" in text
    assert "< 0.0001 *" in text and "| sft → dpo | 600 |" in text
    assert (
        "**lost**: question 8? (answer: 4)" in text
        and "sft says 8" in text
        and "**won**" not in text.split("## Data")[0].split("lost")[0]
    )
    assert "| rows for train | 1299 |" in text and "| sft | 20.2 | 198 | 92,397 |" in text
    assert re.search(
        r"git checkout [0-9a-f]{40} && uv sync\n"
        r"uv run tunebook run --from-manifest \S+recorded/manifest.json",
        text,
    )
    for figure in re.findall(r"\]\((figures/\S+)\)", text):
        assert (run / figure).stat().st_size > 5000
    assert html.count("<img") == text.count("](figures/") >= 3
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', html)  # nothing from elsewhere
    assert "question 8?" in html and "/root/" not in text


def test_a_run_without_results_is_reported_as_far_as_it_goes(run, tmp_path):
    shutil.rmtree(run / "eval")
    assert "Not evaluated." in report.write(run)[0].read_text()
    with pytest.raises(UserError, match="holds no finished stage"):
        report.write(tmp_path)


def test_runs_side_by_side(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    manifest = json.loads((other / "manifest.json").read_text())
    for stage in manifest["stages"].values():
        stage["recipe"]["seed"] = 1
    manifest["stages"]["dpo"]["recipe"]["dpo"]["beta"] = 0.5  # given to this stage alone
    (other / "manifest.json").write_text(json.dumps(manifest))
    summary = json.loads((other / "eval" / "summary.json").read_text())
    summary["comparisons"][1]["difference"] = 0.075
    (other / "eval" / "summary.json").write_text(json.dumps(summary))
    path = other / "eval" / "dpo" / "predictions.jsonl"
    path.write_text(path.read_text().replace('"correct": false', '"correct": true'))
    text = compare_runs([run, other])
    assert "| `seed` | 0 | 1 |" in text and "| `dpo.beta` | 1.0 | 0.5 |" in text and text.count("| `") == 2
    assert (
        "| recorded dpo → other dpo | 10 | +20.0" in text and "| recorded sft → other sft | 10 | +0.0" in text
    )
    assert (
        "| sft → dpo | 2 | +5.5, +7.5 | +6.5 (-6.2 to +19.2) | 1.4 | 1.5 |" in text
    )  # t = 12.706 with one degree of freedom
    assert "nan" not in compare_runs([run])
    path.write_text(path.read_text().replace("question 3?", "another?"))
    assert "recorded dpo → other dpo" not in compare_runs([run, other])
    (other / "eval" / "summary.json").unlink()
    with pytest.raises(UserError, match="other has not been evaluated"):
        compare_runs([run, other])


def prose_run(folder: Path, nats: list[float]) -> Path:
    """A run whose answers nothing can check: SFT's losses of some held-out answers of four tokens."""
    evaluated = folder / "eval" / "sft"
    evaluated.mkdir(parents=True)
    lines = []
    for i, value in enumerate(nats):
        lines.append(json.dumps({"index": i, "source_id": f"p/{i}", "nats": value, "tokens": 4}))
    (evaluated / LOSSES).write_text("\n".join(lines) + "\n")
    summary = {"stages": {"sft": {**summarise_losses(evaluated), "answers": None}}, "comparisons": []}
    (folder / "eval" / "summary.json").write_text(json.dumps(summary))
    stage = {"recipe": load_recipe(overrides={"sft.learning_rate": nats[0]}).model_dump(mode="json")}
    (folder / "manifest.json").write_text(json.dumps({"run": folder.name, "stages": {"sft": stage}}))
    return folder


def test_runs_of_prose_are_compared_by_the_losses_of_the_same_answers(tmp_path):
    slow = prose_run(tmp_path / "slow", [6.0, 8.0, 4.0])
    fast = prose_run(tmp_path / "fast", [4.0, 4.0, 4.0])
    text = compare_runs([slow, fast])
    assert "| slow sft | 3 | 1.500 (" in text and "| fast sft | 3 | 1.000 (" in text
    # 18 against 12 nats over 12 tokens: two answers became likelier, none less likely.
    assert "| slow sft → fast sft | 3 | -0.500 (" in text and "none is paired" not in text
    assert "## Accuracy" not in text and "Over the runs" not in text
    other = prose_run(tmp_path / "other", [4.0, 4.0])
    assert "other answered other items" in compare_runs([slow, other])
