"""What `tunebook run` says of a step that has ended."""

from __future__ import annotations

import json

import pytest

from tunebook.outcome import outcome
from tunebook.pairs import pairs
from tunebook.pairs.summary import remarks
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import write_json
from tunebook.runs.stages import steps

COMPARED = {
    "first": "base",
    "second": "sft",
    "n": 100,
    "difference": 0.3,
    "interval": [0.2, 0.4],
    "won": 31,
    "lost": 1,
    "p": 1e-8,
}


def log(folder, losses: dict[int, float | str]) -> None:
    entries = [{"step": step, "loss": loss} for step, loss in losses.items()]
    entries.append({"step": max(losses, default=0), "eval_loss": 0.75})
    lines = [json.dumps(entry) + "\n" for entry in entries]
    (folder / "metrics.jsonl").write_text("".join(lines))


def test_the_loss_is_said_of_as_many_steps_at_the_end_as_at_the_beginning():
    """One batch at the end against a mean at the beginning looked as if training had made it worse."""
    recipe = load_recipe()
    folder = recipe.run_dir / "sft"
    folder.mkdir(parents=True)
    write_json(folder / "stage.json", {"key": "k"})

    def said(losses):
        log(folder, losses)
        (line,) = outcome(steps(recipe)["sft"], recipe)
        return line.partition("; ")[2].removesuffix(", 0.750 on held-out rows")

    assert said({5: 3.5, 6: 4.1}) == "loss 3.600 over its 6 steps"
    # The last log is of one step: that before it counts too.
    assert said({10: 3.5, 20: 3.0, 21: 4.0}) == "loss 3.500 at first, 3.100 at last (10 steps each)"
    every_step = dict.fromkeys(range(1, 11), 4.0) | dict.fromkeys(range(11, 31), 2.0)
    assert said(every_step) == "loss 4.000 at first, 2.000 at last (10 steps each)"
    assert said({}) == ""


def test_each_step_says_what_came_of_it():
    recipe = load_recipe()
    todo = steps(recipe)
    run = recipe.run_dir
    assert [outcome(step, recipe) for step in todo.values()] == [[]] * len(todo)  # nothing is there yet
    for name in ("data", "sft", "pairs", "eval"):
        (run / name).mkdir(parents=True)
    rows = {"train": 90, "val": 5, "test": 3}
    write_json(run / "data" / "stage.json", {"rows": rows, "quarantined": {"duplicate": 2}})
    first, second = outcome(todo["prepare"], recipe)
    assert first == "rows: 100 in, 98 out, 2 aside (in data/quarantine.jsonl)" and "2 duplicate" in second

    write_json(run / "sft" / "stage.json", {"key": "k"})
    log(run / "sft", {10: "1.5", 20: 0.5})
    (said,) = outcome(todo["sft"], recipe)
    assert said == (
        f"adapter: {run / 'sft' / 'adapter'}; loss 1.500 at first, 0.500 at last (10 steps each), "
        "0.750 on held-out rows"
    )
    sampled = {"settings": {"pairs": {"methods": ["on_policy"]}}, "rows": {"train": 40, "val": 4}}
    write_json(run / "pairs" / "stage.json", sampled)
    assert outcome(todo["pairs"], recipe) == ["pairs: 40 to train on, 4 to watch"]

    stages = {"base": {"n": 100, "accuracy": 0.1}, "sft": {"n": 100, "accuracy": 0.4}}
    summary = {"split": "test", "stages": stages, "comparisons": [COMPARED]}
    write_json(run / "eval" / "summary.json", summary)
    sentence, report = outcome(todo["evaluate"], recipe)
    assert sentence.startswith("sft gets 30 more of 100 held-out items right than base")
    assert report == f"Report: {run / 'report.html'}"


def pairs_of(method: str, train: int, **more) -> dict:
    return {"settings": {"pairs": {"methods": [method]}}, "rows": {"train": train, "val": 0}, **more}


def test_rows_of_a_preference_set_that_were_put_aside_are_said_after_the_step_too():
    recipe = load_recipe()
    (recipe.run_dir / "pairs").mkdir(parents=True)
    aside = {"quarantined": {"empty cell": 8}, "examples": {"empty cell": "my.csv:3: rejected: empty"}}
    write_json(recipe.run_dir / "pairs" / "stage.json", pairs_of("dataset", 32, **aside))
    assert outcome(steps(recipe)["pairs"], recipe) == [
        "pairs: 32 to train on, 0 to watch",
        "rows: 40 in, 32 out, 8 aside (in pairs/quarantine.jsonl)",
        "  8 empty cell, the first my.csv:3: rejected: empty; no setting keeps these: mend the rows",
        "WARNING: 20% of the rows were put aside",
    ]


def test_few_pairs_are_said_with_what_brings_more():
    never = remarks(pairs_of("on_policy", 1, pass_counts={"0": 10, "2": 2}), "pairs")
    assert never == [
        "WARNING: DPO learns little from 1 pair: 10 of 12 prompts have no right sample: train SFT longer, "
        "raise pairs.max_new_tokens, or set pairs.reference_chosen=true where rows have their own answers"
    ]
    (seldom,) = remarks(pairs_of("on_policy", 19, pass_counts={"0": 5, "2": 15}), "pairs")
    assert seldom == "WARNING: DPO learns little from 19 pairs: raise pairs.prompts or pairs.samples"
    assert remarks(pairs_of("on_policy", 20, pass_counts={"0": 15, "2": 5}), "pairs") == []


@pytest.mark.parametrize(
    ("method", "mend"),
    [
        ("on_policy", "lower pairs.max_length_ratio"),
        ("dataset", "DPO will learn the length: even it out in the set"),
    ],
)
def test_pairs_that_length_tells_apart_are_said_after_the_step(method, mend):
    recipe = load_recipe()
    (recipe.run_dir / "pairs").mkdir(parents=True)

    def lines(train: int, accuracy: float) -> list[str]:
        record = pairs_of(method, train, quarantined={}, length_only_accuracy=accuracy)
        write_json(recipe.run_dir / "pairs" / "stage.json", record)
        return [line for line in outcome(steps(recipe)["pairs"], recipe) if "length" in line]

    assert lines(40, 0.85) == [f"told apart by length alone: 85% (above 70%: {mend})"]
    # Of a handful of pairs nearly everything tells the sides apart.
    assert lines(40, 0.6) == lines(3, 1.0) == []


def test_dpo_alone_says_what_became_of_the_pairs_that_it_makes(tmp_path, monkeypatch, capsys):
    (tmp_path / "my.jsonl").write_text('{"prompt": "?", "chosen": "Yes.", "rejected": "No."}')
    (tmp_path / "my.yaml").write_text("extends: smollm2\npairs: {dataset: my.jsonl}\ndpo:\n")
    recipe = load_recipe(tmp_path / "my.yaml")
    monkeypatch.setattr(pairs.backend, "backend", lambda: "cpu")
    monkeypatch.setattr(pairs, "pairs", lambda *_: pairs_of("dataset", 1, quarantined={"tie": 1}))
    pairs.existing_pairs(recipe)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rows: 2 in, 1 out, 1 aside (in pairs/quarantine.jsonl)"
    assert lines[-1] == "WARNING: DPO learns little from 1 pair: some hundreds are usual"
