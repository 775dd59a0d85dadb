"""Answers that nothing can check: losses of held-out ones, compared row by row, and the report of them."""

from __future__ import annotations

import json
import math

import pytest

from tunebook.evaluation import held_out, tables
from tunebook.evaluation.report import parts
from tunebook.evaluation.statistics import ratio_interval


def losses(folder, rows):
    folder.mkdir(parents=True)
    lines = [json.dumps({"index": i, "source_id": f"r:{i}", **row}) for i, row in enumerate(rows)]
    (folder / held_out.LOSSES).write_text("\n".join(lines) + "\n")
    return folder


def test_the_loss_is_of_all_tokens_and_not_the_mean_of_rows(tmp_path):
    rows = [{"nats": 10.0, "tokens": 10}, {"nats": 2.0, "tokens": 1}, {"nats": 5.0, "tokens": 4}]
    summary = held_out.summarise_losses(losses(tmp_path / "base", rows))
    assert summary["n"] == 3 and summary["tokens"] == 15
    assert summary["loss"] == pytest.approx(17 / 15)
    assert summary["perplexity"] == pytest.approx(math.exp(17 / 15))
    low, high = summary["loss_interval"]
    assert 1.0 <= low < 17 / 15 < high <= 2.0


def test_losses_are_compared_row_by_row(tmp_path):
    before = [{"nats": 10.0 + i % 7, "tokens": 10} for i in range(40)]
    # Every row a little better, though rows differ far more from each other.
    after = [{"nats": row["nats"] - 0.5, "tokens": 10} for row in before]
    folders = {
        "base": losses(tmp_path / "base", before),
        "sft": losses(tmp_path / "sft", after),
        "dpo": losses(tmp_path / "dpo", before),
    }
    first, second, whole = held_out.compare_losses(folders)
    assert (first["first"], first["second"], first["n"]) == ("base", "sft", 40)
    assert first["difference"] == pytest.approx(-0.05) and first["interval"] == pytest.approx([-0.05, -0.05])
    assert (first["lower"], first["higher"]) == (40, 0) and first["p"] < 1e-10
    assert second["difference"] == pytest.approx(0.05) and second["higher"] == 40
    assert (whole["first"], whole["second"]) == ("base", "dpo")
    assert whole["difference"] == 0 and whole["interval"] == [0, 0] and whole["p"] == 1
    table = tables.loss_comparison_table([first, whole]).markdown()
    assert "| base → sft | 40 | -0.050 (-0.050 to -0.050) | 40 | 0 | < 0.0001 |" in table


def test_pairs_say_whether_chosen_gained_on_rejected(tmp_path):
    before = [{"nats": 9.0, "tokens": 3, "rejected_nats": 9.0} for _ in range(4)]
    after = [{"nats": 8.0, "tokens": 3, "rejected_nats": rejected} for rejected in (9.5, 8.5, 7.0, 8.0)]
    (compared,) = held_out.compare_losses(
        {"start": losses(tmp_path / "a", before), "dpo": losses(tmp_path / "b", after)}
    )
    assert compared["prefers"] == 0.5  # the third fell by more than chosen, the fourth by as much


def test_one_row_shows_nothing():
    assert ratio_interval([3.0], [2]) == [-math.inf, math.inf]


def test_a_report_of_prose_leads_with_the_loss_and_shows_answers_side_by_side(tmp_path):
    answers = {"n": 2, "ended": 0.5, "mean_tokens": 12.0, "repeating": 0.0}
    stages = {}
    for name, loss in (("base", 2.0), ("sft", 1.5)):
        stages[name] = {
            "n": 30,
            "tokens": 300,
            "loss": loss,
            "loss_interval": [loss - 0.1, loss + 0.1],
            "perplexity": math.exp(loss),
            "answers": answers,
            "slices": {},
        }
        lines = []
        for i in range(2):
            record = {
                "index": i,
                "source_id": f"r:{i}",
                "prompt": f"Question {i}?",
                "answer": f"{name} says {i}",
            }
            lines.append(json.dumps({**record, "correct": None, "gold": None}))
        folder = tmp_path / "eval" / name
        folder.mkdir(parents=True)
        (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    compared = {"first": "base", "second": "sft", "n": 30, "difference": -0.5, "interval": [-0.6, -0.4]}
    shown = {**compared, "lower": 28, "higher": 2, "p": 1e-5}
    not_shown = {**compared, "first": "sft", "second": "dpo", "lower": 18, "higher": 12, "p": 0.3}
    summary = {"split": "test", "stages": stages, "comparisons": [], "losses": [shown, not_shown]}
    (tmp_path / "eval" / "summary.json").write_text(json.dumps(summary))
    recipe = {"name": "mine", "seed": 0, "model": {"base": "tiny"}, "folders": []}
    stage = {
        "recipe": recipe,
        "git": {"commit": "c", "dirty": False},
        "hardware": {"cores": 2, "cpu": "c", "memory_gb": 8, "gpus": []},
        "command": "",
        "overrides": {},
    }
    stage["peak_memory_gb"] = {}
    stage |= {"ended": "2026-01-01T00:00:00+00:00", "started": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "manifest.json").write_text(json.dumps({"stages": {"sft": stage}}))
    text = "\n".join(part for part in parts(tmp_path) if isinstance(part, str))
    assert "**sft against base: better** (held-out loss per token -0.500" in text
    # An interval alone is too narrow of few rows: the sign test must agree.
    assert "**dpo against sft: not shown to be different**" in text
    assert "| sft | 30 | 1.500 (1.400 to 1.600) | 4.48 | 50% of 2 | 12 |" in text
    assert text.index("**Question 0?**") < text.index("base says 0") < text.index("sft says 0")
    assert "accuracy" not in text
