"""Scores and their table, without a model."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace

import pytest

from tunebook.data.prepare import prepare
from tunebook.evaluation import evaluate, gate, items, tables
from tunebook.generation.answers import Answer
from tunebook.generation.generate import read_records
from tunebook.models import adapters, backend
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def prediction(i: int, correct: bool, **kwargs) -> dict:
    asked = {"index": i, "prompt": f"{i}?", "gold": str(i), "slice": "a"}
    return asked | {"correct": correct, "how": "boxed", "truncated": False, "tokens": 10} | kwargs


def test_shares_and_the_wilson_interval():
    predictions = [prediction(i, i < 57) for i in range(99)] + [
        prediction(99, False, how="none", truncated=True, slice="b", tokens=110)
    ]
    summary = items.summarise(predictions)
    assert summary["accuracy"] == 0.57
    assert summary["interval"] == pytest.approx([0.4721, 0.6627], abs=1e-4)  # Wilson, 57 of 100
    assert (summary["boxed"], summary["truncated"], summary["no_answer"], summary["mean_tokens"]) == (
        0.99,
        0.01,
        0.01,
        11,
    )
    assert summary["slices"]["b"]["n"] == 1
    table = tables.accuracy_table({"base": summary}).markdown()
    assert "| base | all | 100 | 57.0% (47.2 to 66.3) | 99% | 1% | 1% | 11 |" in table


def test_a_number_in_a_cut_off_answer_is_not_its_answer():
    item = {
        "source_id": "x",
        "slice": "",
        "group": "",
        "difficulty": "",
        "gold": "15",
        "prompt": [{"role": "user", "content": "q"}],
    }
    assert items.checked(item, Answer("12 + 3 = 15", 9, truncated=False))["correct"]
    cut = items.checked(item, Answer("12 + 3 = 15", 9, truncated=True))
    assert (cut["correct"], cut["how"], cut["truncated"]) == (False, "none", True)


def test_a_limit_takes_items_evenly(monkeypatch):
    monkeypatch.setattr(
        items, "load", lambda recipe, split: [{"gold": str(i)} for i in range(10)] + [{"gold": None}]
    )
    limited = items.held_out_items(load_recipe(), 5)
    assert [i["gold"] for i in limited] == ["0", "2", "4", "6", "8"]
    assert len(items.held_out_items(load_recipe(), 99)) == 10
    # Of prose nothing can be checked: its loss is measured instead.
    monkeypatch.setattr(items, "load", lambda recipe, split: [{"gold": None}])
    assert items.held_out_items(load_recipe(), None) == []


def test_a_line_cut_short_is_left_out(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(
        json.dumps(prediction(1, True)) + "\n" + json.dumps(prediction(0, True)) + '\n{"index": 2, "sl'
    )
    assert [p["index"] for p in read_records(path)] == [0, 1]
    assert read_records(tmp_path / "none.jsonl") == []


def test_an_unknown_stage_is_one_line():
    with pytest.raises(UserError, match="no stage 'stf': choose from base, sft, dpo"):
        evaluate.eval_stage(load_recipe(), "stf")


def answered(recipe, **stages: list[bool]) -> None:
    """Predictions of stages, as an evaluation leaves them."""
    for name, marks in stages.items():
        folder = recipe.run_dir / "eval" / name
        folder.mkdir(parents=True)
        lines = [
            json.dumps({**prediction(i, mark), "slice": "a" if i % 2 else "b"})
            for i, mark in enumerate(marks)
        ]
        (folder / "predictions.jsonl").write_text("\n".join(lines))


def texts(recipe) -> list[str]:
    return [failure.text for failure in gate.gate(recipe)]


def test_the_gate_holds_a_worse_model_back_and_lets_a_good_one_through():
    rules = [{"first": "base", "second": "sft"}, {"first": "sft", "second": "dpo", "at_least": -2}]
    recipe = load_recipe(overrides={"evaluate.gate": rules})
    good = [i % 10 != 0 for i in range(400)]
    answered(recipe, base=[False] * 400, sft=good, dpo=good)
    assert gate.gate(recipe) == []
    folder = recipe.run_dir / "eval" / "dpo"
    (folder / "predictions.jsonl").unlink()
    assert texts(recipe) == ["dpo against sft: not both have been evaluated on the same items"]
    folder.rmdir()
    damaged = [mark and i % 4 != 1 for i, mark in enumerate(good)]
    answered(recipe, dpo=damaged)
    (failed,) = texts(recipe)
    assert failed.startswith("dpo against sft: -25.0 points (95% interval -2") and failed.endswith(
        "n = 400), the lower end must be above -2.0"
    )
    sliced = load_recipe(overrides={"evaluate.gate": [rules[1] | {"slice": "b"}]})
    assert gate.gate(sliced) == []  # the damage is in the other slice
    (same,) = texts(load_recipe(overrides={"evaluate.gate": [{"first": "sft", "second": "sft"}]}))
    assert (
        same == "sft against sft: +0.0 points (95% interval +0.0 to +0.0, n = 400), "
        "the lower end must be above +0.0"
    )


def test_the_gate_wants_proof_of_few_items_and_the_same_items():
    recipe = load_recipe(overrides={"evaluate.gate": [{"first": "base", "second": "sft"}]})
    answered(
        recipe, base=[False] * 60, sft=[True] * 5 + [False] * 55
    )  # 5 won, none lost: the bootstrap interval is above 0
    assert texts(recipe) == [
        "sft against base: +8.3 points (95% interval +1.7 to +15.0, n = 60), "
        "McNemar's p = 0.062 must be below 0.05"
    ]
    path = recipe.run_dir / "eval" / "base" / "predictions.jsonl"
    path.write_text(path.read_text().replace('"gold": "5"', '"gold": "6"'))
    assert texts(recipe) == ["sft against base: not both have been evaluated on the same items"]


def test_the_gate_is_the_commands_exit_code(monkeypatch, capsys):
    from tunebook import cli

    monkeypatch.setattr(evaluate, "evaluate", lambda *given: {})
    monkeypatch.setattr(tables, "show", lambda *given: None)
    monkeypatch.setattr("sys.argv", ["tunebook", "evaluate", "--gate"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert (
        stopped.value.code == 2
        and "gate: sft against base: not both have been evaluated" in capsys.readouterr().err
    )
    monkeypatch.setattr("sys.argv", ["tunebook", "evaluate"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0


def test_the_gate_and_unused_samples_do_not_make_an_evaluation_stale():
    keys = [
        evaluate.eval_stage(load_recipe(overrides=o), "base").key
        for o in ({}, {"evaluate.gate": []}, {"evaluate.temperature": 0.5})
    ]
    assert len(set(keys)) == 1
    assert evaluate.eval_stage(load_recipe(overrides={"evaluate.samples": 2}), "base").key != keys[0]


def test_pass_at_k_and_majority(monkeypatch, tmp_path):
    said = [
        "6",
        "5.0",
        "5",
        "7",
        "8",
        "8",
        "1",
        "2",
        "5",
    ]  # three items with the answer 5, three samples each
    records = [{"index": i, "parsed": s, "correct": float(s) == 5} for i, s in enumerate(said)]
    monkeypatch.setattr(items, "answer_file", lambda *given, **more: records)
    recipe = load_recipe(overrides={"evaluate.samples": 3})
    asked = [{"prompt": []}] * 3
    found = items.Exam(recipe, "sft", lambda: None, asked, tmp_path).sample()
    assert found == {
        "k": 3,
        "temperature": 1.0,
        "pass@1": pytest.approx(3 / 9),
        "pass@k": pytest.approx(2 / 3),
        "majority": pytest.approx(1 / 3),
    }
    records[1] |= {"parsed": "6", "correct": False}
    again = items.Exam(recipe, "sft", lambda: None, asked, tmp_path).sample()
    assert again["majority"] == 0.0
    (row,) = tables.sampled_table({"sft": {"n": 3, "sampled": found}, "base": {"n": 3}}).rows
    assert tuple(row.values()) == ("sft", "3", "3", "1.0", "33.3%", "66.7%", "33.3%")


def test_items_are_paged_through_by_what_became_of_them():
    from tunebook.chat import widgets

    marks = {"base": [0, 0, 1, 1], "sft": [1, 0, 0, 1]}
    found = {
        name: [
            {
                "prompt": f"q{i} <b>",
                "gold": "4",
                "slice": "s",
                "group": "",
                "answer": f"{name} {i}",
                "correct": bool(m),
            }
            for i, m in enumerate(row)
        ]
        for name, row in marks.items()
    }
    box = widgets.browse(found)
    (kind, back, page, forth), shown = box.children[0].children, box.children[1]
    assert kind.options == (
        ("all (4)", "all"),
        ("won (1)", "won"),
        ("lost (1)", "lost"),
        ("both wrong (1)", "both wrong"),
        ("both right (1)", "both right"),
    )
    assert "q0 &lt;b&gt;" in shown.value and "✗ base" in shown.value and "✓ sft" in shown.value
    back.click()
    assert page.value == 1
    for _ in range(9):
        forth.click()
    assert page.value == 4 and "sft 3" in shown.value
    kind.value = "lost"
    assert (page.value, page.max) == (1, 1) and "base 2" in shown.value
    assert widgets.browse({"base": []}).children[1].value == "none"


def test_a_model_that_learnt_other_rows_is_not_evaluated(monkeypatch, tmp_path, capsys):
    """Held-out rows of new data may be train rows of the old ones.

    The same train split under another key is no harm.
    """
    rows = tmp_path / "rows.jsonl"
    asked = (
        {"prompt": f"What is {i} + {i}?", "completion": f"\\boxed{{{2 * i}}}", "answer": str(2 * i)}
        for i in range(60)
    )
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))

    def recipe(**changes):
        source = {"format": "chat", "path": str(rows), "val": 0.1, "test": 0.1} | changes
        return load_recipe(overrides={"data.sources": [source]})

    trained = prepare(recipe())["fingerprints"]["train"]
    folder = recipe().run_dir / "sft"
    (folder / "adapter").mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps({"key": "k", "learnt": [trained]}))
    monkeypatch.setattr(backend, "backend", lambda: "cpu")
    monkeypatch.setattr(adapters, "load_stages", lambda *given: pytest.fail("a model is loaded"))
    with pytest.raises(
        UserError, match=r"sft was trained on other rows than the train split .*`uv run tunebook sft --set "
    ):
        evaluate.evaluate(recipe(test=0.4), ["sft"])
    evaluate._refuse_learnt(recipe(), "sft", prepare(recipe())["fingerprints"]["train"])
    (folder / "stage.json").write_text(
        json.dumps({"key": "k", "settings": {"model": {"base": "another", "revision": None}}})
    )
    evaluate.eval_stage(recipe(), "sft")
    evaluate.eval_stage(recipe(), "sft")
    assert capsys.readouterr().out.count("was trained with model.base another, not smollm2") == 1


def test_more_samples_ask_no_greedy_answer_again(monkeypatch):
    """Nor does another gate; another length of the answers does."""
    asked = []

    def answering(source, prompts, sampling, images, *, skip, label, usage):
        for i in range(len(prompts)):
            if i not in skip:
                asked.append(label)
                yield {i: Answer("\\boxed{5}", 3, False)}

    monkeypatch.setattr("tunebook.generation.generate.generate", answering)
    monkeypatch.setattr(evaluate, "data_stage", lambda recipe: SimpleNamespace(key="data"))
    rows = []
    for name in "ab":
        rows.append(
            {
                "source_id": name,
                "slice": None,
                "group": None,
                "difficulty": None,
                "gold": "5",
                "prompt": [{"role": "user", "content": name}],
            }
        )

    def exam(**keys):
        asked.clear()
        recipe = load_recipe(overrides={f"evaluate.{key}": keys[key] for key in keys})
        stage = evaluate.eval_stage(recipe, "base")
        with stage.open() as folder:
            depends_on = evaluate._answers_depend_on(stage)
            work = items.Exam(recipe, "base", contextlib.nullcontext, rows, folder, depends_on)
            work.answer()
            if recipe.evaluate.samples:
                work.sample()
        return list(asked)

    assert exam() == ["base answers"] * 2
    assert exam(samples=2) == ["base samples"] * 4
    assert exam(samples=2, temperature=0.5) == ["base samples"] * 4
    assert exam(samples=3, temperature=0.5) == ["base samples"] * 6
    assert exam(max_new_tokens=9) == ["base answers"] * 2
