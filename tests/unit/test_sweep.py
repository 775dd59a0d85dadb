"""Sweeps: the grid, the names of its runs, what is taken over, and whether a winner is one."""

from __future__ import annotations

import json

import numpy
import pytest

from tunebook.evaluation.choice import best_of, choice_table, choose, item_scores, same_items, verdict
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import read_json
from tunebook.runs.stage import Stage
from tunebook.sweep import grid, named, sweep, take_over


def answers(rng, n, *chances):
    """Right and wrong answers of models with these chances of being right, to items of unequal difficulty."""
    difficulty = rng.normal(0, 1.5, n)
    scores = {}
    for number, chance in enumerate(chances):
        share = 1 / (1 + numpy.exp(-(numpy.log(chance / (1 - chance)) - difficulty)))
        scores[f"s{number}"] = [float(right) for right in rng.random(n) < share]
    return scores


def test_among_settings_that_are_alike_a_winner_is_named_no_more_often_than_the_stated_rate():
    rng = numpy.random.default_rng(0)
    winners = called_worse = 0
    for _ in range(200):
        _, rivals = best_of(answers(rng, 150, *[0.5] * 6))
        winners += not rivals
        called_worse += len(rivals) < 5
    assert winners <= 0.05 * 200
    # Not even one of the six is called worse than the best.
    assert called_worse <= 0.05 * 200


def test_without_the_correction_the_rate_would_be_passed(monkeypatch):
    """So that the test above has teeth."""
    monkeypatch.setattr("tunebook.evaluation.choice.holm", lambda pvalues: list(pvalues))
    rng = numpy.random.default_rng(0)
    called_worse = sum(len(best_of(answers(rng, 150, *[0.5] * 6))[1]) < 5 for _ in range(200))
    assert called_worse > 0.15 * 200


def test_a_setting_that_is_better_is_named():
    rng = numpy.random.default_rng(1)
    named_best = 0
    for _ in range(50):
        best, rivals = best_of(answers(rng, 400, 0.4, 0.4, 0.4, 0.4, 0.4, 0.65))
        named_best += best == "s5" and not rivals
    assert named_best >= 45


def test_the_verdict_and_the_table_say_what_is_shown():
    scores = {"a": [1.0] * 60 + [0.0] * 40, "b": [1.0] * 59 + [0.0] * 41, "c": [0.0] * 100}
    choice = choose(scores)
    assert choice["best"] == "a" and choice["rivals"] == ["b"] and choice["n"] == 100
    assert choice["models"]["b"]["difference"] == pytest.approx(-0.01) and choice["models"]["b"]["p"] == 1
    assert choice["models"]["c"]["p"] < 1e-10 and "p" not in choice["models"]["a"]
    assert "No setting is shown to be the best. a has the highest mean, but 1 of the 2 others" in verdict(
        choice
    )
    settings = {name: {"lora.r": r} for name, r in zip("abcd", (4, 8, 16, 32), strict=True)}
    rows = choice_table(settings, choice, {"d": "stopped at step 3"}).rows
    assert [row["verdict"] for row in rows] == [
        "highest mean",
        "may be as good",
        "worse",
        "failed: stopped at step 3",
    ]
    assert rows[0]["mean"].startswith("0.600 (0.5") and rows[2]["behind"].startswith("-0.600 (-0.690 to -0.5")

    alone = choose({"a": scores["a"], "c": scores["c"]})
    (first, _) = choice_table({name: settings[name] for name in "ac"}, alone, {}).rows
    assert first["verdict"] == "**best**"
    assert alone["rivals"] == [] and "a is shown to be better than each of the 1 others" in verdict(alone)


def test_other_items_are_not_paired():
    with pytest.raises(UserError, match="b answered other items than a"):
        same_items({"a": {"x": 1.0}, "b": {"y": 1.0}})
    assert same_items({"a": {"x": 1.0, "y": 0.0}, "b": {"y": 1.0, "x": 0.5}}) == {"a": [1, 0], "b": [0.5, 1]}


def test_the_scores_of_prose_are_log_probabilities(tmp_path):
    folder = tmp_path / "eval" / "sft"
    folder.mkdir(parents=True)
    (folder / "losses.jsonl").write_text('{"index": 0, "source_id": "p/1", "nats": 6.0, "tokens": 4}\n')
    assert item_scores(tmp_path, "sft") == {"p/1": -1.5}
    assert choose({"a": [-1.5, -1.0], "b": [-1.4, -1.1]})["models"]["a"]["interval"][1] < 0


def test_the_grid_and_the_names_of_its_runs():
    settings = grid(["sft.learning_rate=1e-4,2e-4", "lora.target_modules=[q_proj, v_proj],[q_proj]"])
    assert len(settings) == 4 and settings[1]["lora.target_modules"] == ["q_proj"]
    assert list(named("s", settings))[:2] == [
        "s-learning_rate-0.0001-target_modules-q_proj-v_proj",
        "s-learning_rate-0.0001-target_modules-q_proj",
    ]
    # One more value moves no run to another folder, and two of one name have their own.
    few, more = named("s", grid(["lora.r=8,16"])), named("s", grid(["lora.r=4,8,16"]))
    assert set(few) < set(more)
    assert len(named("s", [{"a.b": "x/y"}, {"a.b": "x-y"}])) == 2
    for wrong in ([], ["lora.r=8"], ["lora.r"], ["lora.r="]):
        with pytest.raises(UserError, match="two values or more"):
            grid(wrong)


def test_a_mistake_in_any_setting_is_said_before_one_is_trained(monkeypatch):
    monkeypatch.setattr("tunebook.sweep.make", lambda *given: pytest.fail("trains"))
    with pytest.raises(UserError, match=r"sft\.per_device_train_batch_size: should be 1 or more"):
        sweep("smollm2-math", ["sft.per_device_train_batch_size=4,0"], None, {})
    with pytest.raises(UserError, match=r"unknown key sft\.lr, did you mean"):
        sweep("smollm2-math", ["sft.lr=1e-4,2e-4"], None, {})


def test_a_setting_that_fails_is_a_row_and_not_the_end(monkeypatch, tmp_path, capsys):
    def trained(recipe, earlier):
        if recipe.sft["learning_rate"] == 9:
            raise UserError("stopped at step 3: loss is nan")
        assert recipe.evaluate.split == "val" and len(earlier) == len(list((tmp_path / "runs").glob("x-*")))
        folder = recipe.run_dir / "eval" / "sft"
        folder.mkdir(parents=True)
        rate = recipe.sft["learning_rate"]
        lines = []
        for index in range(40):
            item = {
                "index": index,
                "source_id": f"i/{index}",
                "prompt": "",
                "correct": rate == 2 or index < 5,
            }
            lines.append(json.dumps(item))
        (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")

    monkeypatch.setattr("tunebook.sweep.make", trained)
    text = sweep("smollm2-math", ["sft.learning_rate=1,2,9"], "x", {"stages": ["sft"]})
    assert text.startswith("x-learning_rate-2 is shown to be better than each of the 1 others (n = 40).")
    assert "failed: stopped at step 3: loss is nan |" in text and "1.000 (" in text
    folder = tmp_path / "runs" / "x"
    assert (folder / "sweep.md").read_text() == text and (folder / "sweep.png").exists()
    result = read_json(folder / "sweep.json")
    assert result["best"] == "x-learning_rate-2" and list(result["failed"]) == ["x-learning_rate-9"]
    assert "[3/3] x-learning_rate-9\nfailed: stopped" in capsys.readouterr().out
    with pytest.raises(UserError, match="fewer than two settings could be trained: stopped at step 3"):
        sweep("smollm2-math", ["sft.learning_rate=9,9.0"], "y", {"stages": ["sft"]})


def filled(run: str, learning_rate: float = 0.1) -> Stage:
    stage = Stage(load_recipe(run=run), "sft", {"learning_rate": learning_rate}, {"data": "abc"})
    with stage.open() as folder:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_text(f"{learning_rate}")
    return stage


def test_a_result_of_the_same_settings_is_taken_over_whole(capsys):
    first = filled("first")
    other = filled("other", 0.2)
    same = Stage(load_recipe(run="same"), "sft", {"learning_rate": 0.1}, {"data": "abc"})
    take_over(same, [other.recipe.run_dir, first.recipe.run_dir])
    assert same.done and same.skip(False)
    assert (same.dir / "adapter" / "weights").read_text() == "0.1"
    assert "sft is that of first" in capsys.readouterr().out
    assert read_json(same.recipe.run_dir / "manifest.json")["stages"]["sft"]["key"] == same.key
    # Made again there, it stays as it is here.
    with first.open(resume=False) as folder:
        (folder / "new").write_text("")
    assert (same.dir / "adapter" / "weights").read_text() == "0.1" and same.done

    alone = Stage(load_recipe(run="alone"), "sft", {"learning_rate": 0.3}, {"data": "abc"})
    take_over(alone, [first.recipe.run_dir, other.recipe.run_dir])
    assert not alone.dir.exists()


def test_what_was_made_of_another_result_is_not_taken_over():
    """The same settings on a GPU give other weights each time, and an evaluation belongs to its weights."""
    runs = []
    for run, text in (("one", "a"), ("two", "b")):
        recipe = load_recipe(run=run)
        sft = Stage(recipe, "sft", {}, {})
        with sft.open() as folder:
            (folder / "weights.safetensors").write_text(text)
        runs.append(recipe)
    evaluated = Stage(runs[0], "eval/sft", {}, {"adapter": "key"})
    with evaluated.open() as folder:
        (folder / "predictions.jsonl").write_text("")
    second = Stage(runs[1], "eval/sft", {}, {"adapter": "key"})
    take_over(second, [runs[0].run_dir])
    assert not second.dir.exists()
