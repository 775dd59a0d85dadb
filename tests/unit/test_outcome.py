"""What `tunebook run` says of a step that has ended."""

from __future__ import annotations

import json

from tunebook.outcome import outcome
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
    entries = [{"loss": "1.5"}, {"eval_loss": 1.25}, {"loss": 0.5}, {"eval_loss": 0.75}]
    lines = [json.dumps(entry) + "\n" for entry in entries]
    (run / "sft" / "metrics.jsonl").write_text("".join(lines))
    (said,) = outcome(todo["sft"], recipe)
    assert said == (
        f"adapter: {run / 'sft' / 'adapter'}; loss 1.500 at first, 0.500 at last, 0.750 on held-out rows"
    )
    write_json(run / "pairs" / "stage.json", {"rows": {"train": 40, "val": 4}})
    assert outcome(todo["pairs"], recipe) == ["pairs: 40 to train on, 4 to watch"]

    stages = {"base": {"n": 100, "accuracy": 0.1}, "sft": {"n": 100, "accuracy": 0.4}}
    summary = {"split": "test", "stages": stages, "comparisons": [COMPARED]}
    write_json(run / "eval" / "summary.json", summary)
    sentence, report = outcome(todo["evaluate"], recipe)
    assert sentence.startswith("sft gets 30 more of 100 held-out items right than base")
    assert report == f"Report: {run / 'report.html'}"
