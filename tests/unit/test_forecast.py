"""What a run will take: the arithmetic, by value, from records of stages on this machine."""

from __future__ import annotations

import json

import pytest

from tunebook import forecast as module
from tunebook.forecast import Speed, earlier_speeds, forecast, training_work, units_done
from tunebook.recipe.loading import load_recipe
from tunebook.runs.machine import processor
from tunebook.runs.stages import steps

START = "2026-01-01T00:00:00+00:00"


def record(end: str, base: str = "smollm2-135m-instruct", cpu: str = "", **more) -> dict:
    hardware = processor() | ({"cpu": cpu} if cpu else {})
    recipe = {"model": {"base": base}}
    return {
        "started": START,
        "ended": f"2026-01-01T{end}+00:00",
        "hardware": hardware,
        "recipe": recipe,
    } | more


def trained(end: str, count: int, batch: int, **more) -> dict:
    metrics = {"steps": count, "effective_batch_size": batch, "resumed_at_step": None}
    return record(end, metrics=metrics, **more)


@pytest.fixture
def runs(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEBOOK_RUNS", str(tmp_path))
    # The default recipe's rows, without preparing them.
    monkeypatch.setattr(
        module, "training_rows", lambda recipe, stage: range({"sft": 799, "pairs": 500}[stage])
    )
    return tmp_path


def write(folder, stages: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"run": folder.name, "stages": stages}))


def prepared(runs, name: str = "smollm2-math") -> None:
    (runs / name / "data").mkdir(parents=True)
    rows = {"train": 1299, "val": 120, "test": 600}
    (runs / name / "data" / "stage.json").write_text(json.dumps({"rows": rows}))


def test_steps_are_counted_as_transformers_counts_them():
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert training_work(batch | {"num_train_epochs": 2}, 100, 3) == ("26 steps", 208)
    assert training_work(batch, 8, 3) == ("3 steps", 24)
    assert training_work(batch | {"max_steps": 5}, 8, 3) == ("5 steps", 40)
    auto = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": 16}
    assert training_work(auto, 17, 1) == ("2 steps", 32)


def test_before_anything_was_timed_nothing_is_foretold(runs):
    prepared(runs)
    recipe = load_recipe()
    assert forecast(recipe, list(steps(recipe).values())) == ""


def test_after_the_first_steps_dpo_is_known_too_and_its_cost(runs):
    prepared(runs)
    recipe = load_recipe(overrides={"price_per_hour": 3})
    todo = list(steps(recipe).values())[1:]
    # 800 rows at 0.45 s: 6 minutes; 504 pairs at 2.5 times as much: 9.45 minutes; 20 s each until they begin.
    line = forecast(recipe, todo, {"sft": Speed(0.45, "the first steps of sft")})
    assert line == (
        "Forecast: sft 200 steps, 6 min; pairs 1,500 answers (never timed here); "
        "dpo at most 63 steps, 10 min; evaluate 1,800 answers (never timed here). "
        "What is known: about 16 min, 0.81 at 3 an hour. "
        "Timed: the first steps of sft, the first steps of sft (a pair counted as 2.5 rows)."
    )


def test_an_earlier_run_of_the_same_model_on_this_machine_gives_the_rest(runs):
    prepared(runs)
    stages = {
        "sft": trained("00:06:40", 200, 4),  # 0.5 s a row
        "pairs": record("00:03:20", samples={"right": 60, "wrong": 40}),  # 2 s an answer
        "dpo": trained("00:05:00", 30, 10),  # 1 s a pair
        "eval/sft": record("00:01:00", summary={"n": 600}),  # 0.1 s an answer
    }
    write(runs / "trial", stages)
    write(runs / "elsewhere", {"sft": trained("09:00:00", 1, 1, cpu="another")})
    write(runs / "larger", {"sft": trained("09:00:00", 1, 1, base="another/model")})
    recipe = load_recipe()
    (runs / "smollm2-math" / "pairs").mkdir()
    (runs / "smollm2-math" / "pairs" / "stage.json").write_text('{"rows": {"train": 365}}')
    assert forecast(recipe, list(steps(recipe).values())) == (
        "Forecast: sft 200 steps, 7 min; pairs 1,500 answers, 50 min; dpo 46 steps, 6 min; "
        "evaluate 1,800 answers, 3 min. In all about 67 min. Timed: the run trial."
    )
    # What this run has measured itself comes first.
    write(runs / "smollm2-math", {"sft": trained("00:00:08", 2, 4)})
    assert earlier_speeds(recipe)["sft"] == Speed(1.0, "this run")
    assert earlier_speeds(recipe)["dpo"] == Speed(1.0, "the run trial")


def test_a_step_whose_size_is_not_known_is_not_in_the_sum(runs, tmp_path):
    (tmp_path / "p.jsonl").write_text("")
    path = tmp_path / "alone.yaml"
    path.write_text("extends: smollm2\npairs: {dataset: p.jsonl}\ndpo: {max_steps: 3}\n")
    recipe = load_recipe(path)
    todo = [step for step in steps(recipe).values() if step.name != "pairs"]
    # Of DPO alone nobody knows how many held-out pairs the evaluation will have.
    assert forecast(recipe, todo, {"dpo": Speed(0.25, "here")}) == (
        "Forecast: dpo at most 3 steps, 23 s. What is known: about 23 s. Timed: here."
    )


def test_what_was_timed_in_part_says_nothing():
    whole = trained("00:01:00", 10, 4)
    assert units_done(whole) == 40
    assert units_done(whole | {"metrics": whole["metrics"] | {"resumed_at_step": 5}}) == 0
    assert units_done({"rows": {"train": 5}}) == 0
