"""Answers that nothing can check: losses of held-out ones, compared row by row, and the report of them."""

from __future__ import annotations

import json
import math

import pytest

from tunebook.evaluation import first_screen, held_out, items, report, tables
from tunebook.evaluation.report import parts
from tunebook.evaluation.statistics import ratio_interval
from tunebook.generation.answers import Answer
from tunebook.recipe.loading import load_recipe


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
            lines.append(json.dumps({**record, "correct": None, "gold": None, "reference": f"mine {i}"}))
        folder = tmp_path / "eval" / name
        folder.mkdir(parents=True)
        (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    compared = {"first": "base", "second": "sft", "n": 30, "difference": -0.5, "interval": [-0.6, -0.4]}
    shown = {**compared, "lower": 28, "higher": 2, "p": 1e-5}
    not_shown = {**compared, "first": "sft", "second": "dpo", "lower": 18, "higher": 12, "p": 0.3}
    summary = {"split": "test", "stages": stages, "comparisons": [], "losses": [shown, not_shown]}
    (tmp_path / "eval" / "summary.json").write_text(json.dumps(summary))
    recipe = load_recipe().model_dump(mode="json")
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
    assert (
        text.index("**Question 0?**")
        < text.index("mine 0")
        < text.index("base says 0")
        < text.index("sft says 0")
    )
    assert "accuracy" not in text and "prefers" not in text


def compared(n: int, **more) -> dict:
    """A comparison by loss whose interval and test both show a gain."""
    of_losses = {"first": "base", "second": "sft", "n": n, "difference": -0.29, "interval": [-0.37, -0.21]}
    return {**of_losses, "lower": n, "higher": 0, "p": 0.01, **more}


def sentence_and_headline(losses: dict) -> tuple[str, str]:
    summary = {"split": "test", "stages": {"base": {}, losses["second"]: {}}, "losses": [losses]}
    stage = {"recipe": {"name": "mine", "seed": 0, "model": {"base": "tiny"}}}
    return first_screen.sentence(summary), report._headline({"sft": stage}, summary).splitlines()[-1]


def test_of_few_items_nothing_is_claimed():
    sentence, headline = sentence_and_headline(compared(6))
    assert "-0.210); n = 6 is too few to say anything: raise what is held out" in sentence
    assert headline.startswith("- **sft against base: too few items to say anything** (held-out loss")
    sentence, headline = sentence_and_headline(compared(20))
    assert "too few" not in sentence and "**sft against base: better**" in headline
    assert "**sft against base: better**" in sentence_and_headline(compared(13, p=0.0002))[1]
    # The interval alone excludes 0: the reader sees why that is not enough.
    sentence, _ = sentence_and_headline(compared(24, p=0.15))
    assert "95% -0.370 to -0.210), which shows no difference (p = 0.15)." in sentence
    right = {"first": "base", "second": "sft", "n": 3, "difference": 0.3, "interval": [0, 1], "p": 1}
    right |= {"won": 1, "lost": 0, "detectable": 2.0}
    assert tables.comparison_table([right]).rows[0]["detectable"] == "–"
    assert first_screen.verdict(right) == "too few"


def test_after_dpo_alone_the_pairs_are_the_headline():
    dpo = {"second": "dpo", "prefers": 1.0, "prefers_interval": [0.342, 1.0]}
    sentence, headline = sentence_and_headline(compared(2, **dpo))
    text = "chosen gained on rejected in 2 of 2 held-out pairs (100.0%, 95% 34.2 to 100.0)"
    assert sentence.startswith(f"From base to dpo {text}; n = 2 is too few to say anything: raise pairs.val.")
    assert headline == f"- **dpo against base: too few items to say anything** ({text}, n = 2)."
    dpo = {"second": "dpo", "prefers": 0.8, "prefers_interval": [0.66, 0.89]}
    sentence, headline = sentence_and_headline(compared(50, **dpo))
    assert "in 40 of 50 held-out pairs" in sentence and "shows no difference" not in sentence
    assert "**dpo against base: better**" in headline
    unsure = {**dpo, "prefers": 0.56, "prefers_interval": [0.42, 0.69]}
    assert "which shows no difference (p = 0.48)" in sentence_and_headline(compared(50, **unsure))[0]
    results = report._results({"split": "val", "stages": {}, "losses": [compared(50, **dpo)]})
    assert report.PREFERS in results


def test_an_answer_in_prose_is_kept_with_the_rows_own():
    row = {"source_id": "r:1", "slice": None, "group": None, "difficulty": None}
    row["prompt"] = [{"role": "user", "content": "Why?"}]
    row["completion"] = [{"role": "assistant", "content": "So."}]
    answer = Answer("Because.", 2, truncated=False)
    assert items.checked({**row, "gold": None}, answer)["reference"] == "So."
    assert "reference" not in items.checked({**row, "gold": "4"}, answer)
