"""What training has cost elsewhere: the suite's items, the comparison, the gate and the sentence."""

from __future__ import annotations

import json
import random

import pytest

from tunebook.checkers.instructions import read_instructions
from tunebook.data import contamination
from tunebook.data.retention_items import FOLDER, SKILLS, retention_items
from tunebook.data.rows import Row
from tunebook.evaluation import evaluate, first_screen, gate, other_skills, report, retention
from tunebook.recipe.loading import load_recipe


def record(folder, loss: dict[str, float], seed: int, right: float = 0.6) -> None:
    """Answers to the suite: scores near `right`, in some skills lower by so much."""
    noise = random.Random(seed)
    lines = []
    for item in retention_items():
        # The same difficulty for every model, and a little of its own.
        difficulty = random.Random(item["source_id"]).uniform(-0.4, 0.4)
        score = right + difficulty - loss.get(item["skill"], 0) + noise.gauss(0, 0.02)
        score = min(1.0, max(0.0, score))
        of_item = {name: item[name] for name in ("source_id", "skill", "question")}
        lines.append(json.dumps({**of_item, "answer": "a", "score": score, "correct": score > 0.5}))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / retention.FILE).write_text("\n".join(lines) + "\n")


def on_task(folder, right: int, n: int = 200) -> None:
    """Answers to the held-out items, the first ones right."""
    lines = []
    for i in range(n):
        asked = {"index": i, "source_id": f"s{i}", "prompt": f"{i}?", "gold": "1", "slice": "", "answer": "1"}
        verdict = {"correct": i < right, "how": "boxed", "truncated": False, "tokens": 9}
        lines.append(json.dumps(asked | verdict))
    (folder / "predictions.jsonl").write_text("\n".join(lines))


@pytest.fixture
def recipe():
    """A run in which SFT has gained at its task and kept the rest."""
    rules = [
        {"first": "base", "second": "sft", "at_least": 0},
        {"suite": "retention", "second": "sft", "at_least": -3},
    ]
    recipe = load_recipe(overrides={"evaluate.gate": rules, "evaluate.retention": True})
    folder = recipe.run_dir / "eval"
    for seed, (name, right) in enumerate({"base": 20, "sft": 120}.items()):
        record(folder / name, {}, seed)
        on_task(folder / name, right)
    return recipe


def test_items_are_what_the_suite_says():
    items = retention_items()
    assert 300 <= len(items) <= 500 and {item["skill"] for item in items} == set(SKILLS)
    assert len({item["question"] for item in items}) == len(items)
    for item in items:
        assert ("choices" in item) != ("instructions" in item), item
        if "choices" in item:
            assert len(set(item["choices"])) == len(item["choices"]) >= 2, item
        else:
            assert read_instructions(item["instructions"]), item
    # Every file is asked, and each skill has items enough to show something.
    assert {path.stem for path in FOLDER.glob("*.jsonl")} == set(SKILLS)
    for skill in SKILLS:
        assert sum(item["skill"] == skill for item in items) >= 30


def test_no_item_may_be_in_training():
    suite = contamination.retention(load_recipe())
    (item, *_) = [item for item in retention_items() if item["skill"] == "reading"]
    answer = [{"role": "assistant", "content": "At four."}]
    found = suite.check(Row("mine:1", "train", item["prompt"], answer))
    assert found.reason == "in the retention suite" and "reading:0" in found.detail
    other = [{"role": "user", "content": "Who bakes the bread that the fishermen eat?"}]
    assert suite.check(Row("mine:2", "train", other, answer)) is None


def test_a_model_that_kept_everything_passes(recipe):
    folder = recipe.run_dir / "eval"
    rows = retention.compare_skills(folder / "base", folder / "sft", margin=3)
    assert [row["skill"] for row in rows] == ["all", *SKILLS]
    assert {row["verdict"] for row in rows} == {"equal"}
    assert gate.gate(recipe) == []


def test_a_damaged_model_is_broken_elsewhere_though_its_task_passes(recipe, capsys, monkeypatch):
    """One that is also worse at its task is worse, and one with few losses is not shown."""
    folder = recipe.run_dir / "eval"

    def code() -> int:
        return gate.GateFailed(gate.gate(recipe)).exit_code

    record(folder / "sft", {"reading": 0.3}, 1)
    *_, failure = gate.gate(recipe)
    assert failure.text.startswith("sft against base on the retention suite: reading: -2")
    assert failure.text.endswith("the upper end is below -3.0")
    assert code() == gate.BROKEN_ELSEWHERE == 5
    record(folder / "sft", dict.fromkeys(SKILLS, 0.2), 1)
    failures = gate.gate(recipe)
    assert len(failures) == 1 + len(SKILLS) and {failure.code for failure in failures} == {5}

    on_task(folder / "sft", 2)
    assert code() == gate.WORSE == 4
    record(folder / "sft", {}, 1)
    on_task(folder / "sft", 22)
    assert code() == gate.NOT_SHOWN == 3
    (folder / "sft" / retention.FILE).unlink()
    assert code() == 2

    # The command ends with that code.
    from tunebook import cli
    from tunebook.evaluation import tables

    record(folder / "sft", {"facts": 0.3}, 1)
    on_task(folder / "sft", 120)
    monkeypatch.setattr(evaluate, "evaluate", lambda *given: {})
    monkeypatch.setattr(tables, "show", lambda *given: None)
    rules = json.dumps([rule.model_dump() for rule in recipe.evaluate.gate])
    monkeypatch.setattr("sys.argv", ["tunebook", "evaluate", "--gate", "--set", f"evaluate.gate={rules}"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 5 and "facts: -" in capsys.readouterr().err


def test_a_rule_for_one_skill(recipe):
    folder = recipe.run_dir / "eval"
    record(folder / "sft", {"reading": 0.3}, 1)
    rule = {"suite": "retention", "second": "sft", "at_least": -3, "slice": "facts"}
    assert gate.gate(load_recipe(overrides={"evaluate.gate": [rule]})) == []
    (failed,) = gate.gate(load_recipe(overrides={"evaluate.gate": [rule | {"slice": "reading"}]}))
    assert failed.code == gate.BROKEN_ELSEWHERE
    with pytest.raises(gate.UserError, match="no skill 'maths' in the retention suite"):
        gate.gate(load_recipe(overrides={"evaluate.gate": [rule | {"slice": "maths"}]}))


def test_many_skills_are_corrected_for_their_number(tmp_path):
    """Copies of a model that answer a little differently are seldom called worse or better in any skill."""
    wrongly = 0
    record(tmp_path / "a", {}, 0)
    for seed in range(1, 21):
        record(tmp_path / "b", {}, seed)
        rows = retention.compare_skills(tmp_path / "a", tmp_path / "b", margin=3)
        wrongly += any(row["verdict"] in ("worse", "better") for row in rows[1:])
    assert wrongly <= 4  # 5% of 20, and three standard errors


def summary_of(recipe) -> dict:
    """`eval/summary.json` of the run, as an evaluation writes it."""
    stages = {}
    folders = {name: recipe.run_dir / "eval" / name for name in ("base", "sft")}
    for name, folder in folders.items():
        predictions = [json.loads(line) for line in (folder / "predictions.jsonl").open()]
        stages[name] = evaluate.summarise(predictions)
        stages[name]["retention"] = retention.summarise_retention(folder)
    scores = {
        "base": {i: float(i < 20) for i in range(200)},
        "sft": {i: float(i < 120) for i in range(200)},
    }
    compared = {"margin": 3.0, "comparisons": retention.compare_retention(folders, 3)}
    comparisons = evaluate.compared_steps(scores)
    return {"split": "test", "stages": stages, "comparisons": comparisons, "retention": compared}


def test_the_first_sentence_is_true(recipe):
    folder = recipe.run_dir / "eval" / "sft"
    gained = "sft gets 100 more of 200 held-out items right than base (+50.0 points, 95% +43.0 to +57.0)"
    kept = first_screen.sentence(summary_of(recipe))
    assert kept == f"{gained}. Against base nothing else got worse by more than 3 points."
    record(folder, {"reading": 0.3}, 1)
    assert "Against base it got worse in reading (-2" in first_screen.sentence(summary_of(recipe))
    unsure = summary_of(recipe)
    for compared in unsure["retention"]["comparisons"]:
        compared["verdict"] = "not shown" if compared["skill"] == "reading" else "equal"
    assert first_screen.sentence(unsure).endswith(
        "Against base nothing else got worse by more than 3 points; not shown either way: reading."
    )
    for compared in unsure["retention"]["comparisons"]:
        compared["verdict"] = "not shown"
    assert "no other skill is shown to be worse, nor to be the same" in first_screen.sentence(unsure)
    del unsure["retention"]
    assert first_screen.sentence(unsure) == f"{gained}. {first_screen.NOT_MEASURED}"


def test_the_report_begins_with_sentence_table_and_figure(recipe):
    record(recipe.run_dir / "eval" / "sft", {"reading": 0.3}, 1)
    summary = summary_of(recipe)
    recorded = recipe.model_dump(mode="json")
    hardware = {"cores": 2, "cpu": "c", "memory_gb": 1, "gpus": []}
    times = {"started": "2026-01-01T00:00:00", "ended": "2026-01-01T00:01:00"}
    stage = {"recipe": recorded, "hardware": hardware, "peak_memory_gb": {}, **times}
    (recipe.run_dir / "manifest.json").write_text(json.dumps({"stages": {"eval/sft": stage}}))
    (recipe.run_dir / "eval" / "summary.json").write_text(json.dumps(summary))
    text = report.write(recipe.run_dir)[0].read_text()
    first, table, figure = text.split("\n\n")[1:4]
    assert first == first_screen.sentence(summary)
    assert "| the task | 200 | 10.0% | 60.0% | +50.0 (+43.0 to +57.0) | better |" in table
    assert "| reading | 42 | " in table and table.count("| worse |") >= 1
    assert "| facts | 60 | " in table and "| equal within ±3 |" in table
    assert figure == "![skills](figures/skills.png)"
    assert (recipe.run_dir / "figures" / "skills.png").stat().st_size > 5000
    # Each flip stands there with both answers.
    flips = retention.flips(recipe.run_dir / "eval" / "base", recipe.run_dir / "eval" / "sft")
    lost = [flip for flip in flips if flip["outcome"] == "lost"]
    assert len(lost) > 5 and f"### Right → wrong ({len(lost)})" in text
    assert text.count("| right → wrong | reading |") == sum(flip["skill"] == "reading" for flip in lost)
    assert other_skills.section(recipe.run_dir, {"stages": {}}) == []


def test_the_suite_makes_an_evaluation_stale_only_where_it_is_asked():
    keys = []
    for changed in ({}, {"evaluate.margin": 5}, {"evaluate.retention": True}):
        overrides = {"evaluate.retention": False} | changed
        keys.append(evaluate.eval_stage(load_recipe(overrides=overrides), "base").key)
    assert keys[0] == keys[1] != keys[2]
