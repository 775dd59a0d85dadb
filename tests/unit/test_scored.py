"""Pairs and evaluation of answers that have a score, without a model."""

from __future__ import annotations

import json

import pytest
from pair_rows import ROW

from tunebook import init
from tunebook.checkers.check import Check, Judgement
from tunebook.evaluation import evaluate, items, plots, report, statistics, tables
from tunebook.evaluation.compare import _scores
from tunebook.evaluation.gate import gate
from tunebook.generation.answers import Answer
from tunebook.pairs.on_policy import pairs_of_row, why_unpaired
from tunebook.pairs.pair import judge_sample
from tunebook.recipe.errors import UserError
from tunebook.recipe.layers import whole_check
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import CheckConfig, PairsConfig
from tunebook.runs.files import write_json


def opened(value) -> Check:
    return Check(CheckConfig.model_validate(whole_check(value)))


OBEY = ["lower", "no_commas", {"max_words": 2}, {"end": "."}]
ASKED = {**ROW, "gold": None, "columns": json.dumps({"instructions": OBEY})}


def samples(check: Check, *texts: str, truncated: bool = False) -> list[dict]:
    found = []
    for text in texts:
        judged = judge_sample(check, ASKED, text, truncated)
        found.append({"text": text, "tokens": 20, "truncated": truncated, "seed": 0, **judged})
    return found


def sides(pairs: list[dict]) -> list[tuple[str, str]]:
    return [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs]


BY_SCORE = ["One, two, three", "one two three", "one two", "one two."]
"""Answers that obey 0, 2, 3 and 4 of the instructions."""


def test_a_sample_is_right_from_the_threshold_on():
    check = opened({"name": "instructions", "threshold": 0.75})
    found = samples(check, *BY_SCORE)
    assert [sample["score"] for sample in found] == [0, 0.5, 0.75, 1]
    assert [sample["verdict"] for sample in found] == ["wrong", "wrong", "right", "right"]
    (cut,) = samples(check, "one two.", truncated=True)
    (refusal, empty) = samples(check, "I'm sorry, but I can't help with that.", " ")
    assert cut["verdict"] == refusal["verdict"] == empty["verdict"] == "broken"
    unknown = judge_sample(check, {**ASKED, "columns": ""}, "one", False)
    assert unknown == {"verdict": "no score", "score": None}


def test_without_a_margin_right_is_paired_with_wrong():
    check = opened("instructions")
    config = PairsConfig(per_prompt=9)
    found = pairs_of_row(config, ASKED, samples(check, *BY_SCORE), len, check)
    # What begins alike comes first, however far apart the scores are. Commas and capitals count here.
    assert sorted(sides(found)[:2]) == [("one two.", "one two"), ("one two.", "one two three")]
    assert sides(found)[2:] == [("one two.", "One, two, three")]
    assert sorted(pair["margin"] for pair in found) == [0.25, 0.5, 1.0]
    assert pairs_of_row(config, ASKED, samples(check, *BY_SCORE[:3]), len, check) == []


def test_with_a_margin_the_best_is_paired_with_the_worst():
    check = opened("instructions")
    three = samples(check, *BY_SCORE[:3])
    config = PairsConfig(min_margin=0.5, per_prompt=9)
    found = pairs_of_row(config, ASKED, three, len, check)
    (pair,) = found
    assert sides(found) == [("one two", "One, two, three")]
    assert (pair["chosen_correct"], pair["rejected_correct"], pair["margin"]) == (False, False, 0.75)
    # Just as far apart is far enough, in floats too; each pair has another rejected text.
    config = PairsConfig(min_margin=0.25, per_prompt=9)
    assert sides(pairs_of_row(config, ASKED, three, len, check)) == [
        ("one two", "One, two, three"),
        ("one two", "one two three"),
    ]
    assert pairs_of_row(PairsConfig(min_margin=0.8), ASKED, three, len, check) == []
    verdicts = [sample["verdict"] for sample in three]
    assert why_unpaired(verdicts, by_margin=True) == "scores or lengths do not fit"
    assert why_unpaired(["wrong", "broken"], by_margin=True) == "never right"


def test_the_reference_stands_in_with_its_own_score():
    check = opened("instructions")
    row = {**ASKED, "completion": [{"role": "assistant", "content": "one two."}]}
    config = PairsConfig(reference_chosen=True)
    (pair,) = pairs_of_row(config, row, samples(check, "one, two"), lambda text: 20, check)
    assert sides([pair]) == [("one two.", "one, two")]
    assert (pair["strategy"], pair["margin"], pair["chosen_correct"]) == ("reference", 0.5, True)


# Evaluation ----------------------------------------------------------------------------------------------


def item(**columns) -> dict:
    return {
        "source_id": "x",
        "slice": "s",
        "group": "",
        "difficulty": "",
        "gold": None,
        "prompt": [{"role": "user", "content": "q"}],
        "columns": json.dumps(columns),
    }


def test_a_prediction_has_its_score_and_a_failure_is_wrong(monkeypatch):
    check = opened({"name": "instructions", "threshold": 0.5})
    asked = item(instructions=OBEY)
    found = items.checked(asked, Answer("one, two", 9, truncated=False), check)
    assert (found["score"], found["correct"], found["how"]) == (0.5, True, "text")
    cut = items.checked(asked, Answer("one two.", 9, truncated=True), check)
    assert (cut["score"], cut["correct"]) == (0.0, False)
    nothing = items.checked(item(), Answer("one", 9, truncated=False), check)
    assert (nothing["score"], nothing["correct"]) == (None, None)
    monkeypatch.setattr(check, "judge", lambda *given: Judgement(None, None, None, "failed"))
    failed = items.checked(asked, Answer("one", 9, truncated=False), check)
    assert (failed["score"], failed["correct"], failed["how"]) == (0.0, False, "failed")
    assert "score" not in items.checked(asked | {"gold": "1"}, Answer("1", 9, truncated=False))


def prediction(i: int, score: float | None) -> dict:
    correct = None if score is None else score >= 1
    record = {"index": i, "source_id": f"r:{i}", "prompt": f"{i}?", "gold": None, "slice": "ab"[i % 2]}
    answer = {"answer": f"answer {score}", "parsed": None, "how": "text", "truncated": False, "tokens": 10}
    return record | answer | {"correct": correct, "score": score}


BASE = [0.0, 0.25, 0.5, 0.25, 0.0, 0.5, 0.25, 0.5, None, 0.5]
SFT = [0.5, 0.75, 1.0, 0.5, 0.25, 0.75, 0.5, 0.25, 1.0, None]


@pytest.fixture
def evaluated():
    """A run of which `base` and `sft` are evaluated by scores; nothing was said of one answer of each."""
    recipe = load_recipe()
    summaries = {}
    for name, scores in (("base", BASE), ("sft", SFT)):
        lines = [prediction(i, score) for i, score in enumerate(scores)]
        folder = recipe.run_dir / "eval" / name
        folder.mkdir(parents=True)
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        summaries[name] = items.summarise(lines)
    return recipe, summaries


def test_mean_scores_and_their_intervals(evaluated):
    _, summaries = evaluated
    base = summaries["base"]
    assert (base["n"], base["correct"], base["score"]) == (9, 0, pytest.approx(2.75 / 9))
    low, high = base["score_interval"]
    assert 0.15 < low < base["score"] < high < 0.45
    assert base["slices"]["a"]["n"] == 4 and base["slices"]["b"]["score"] == pytest.approx(0.4)
    assert statistics.is_graded(summaries)
    (row, *_) = tables.accuracy_table(summaries).rows
    assert list(row) == ["stage", "slice", "n", "accuracy", "score", "cut_off", "tokens"]
    assert row["score"].startswith("30.6% (")
    (axes,) = plots.accuracies(summaries).axes
    assert axes.get_ylabel() == "mean score"
    # Right and wrong alone: the score is the accuracy, and is not said twice.
    plain = items.summarise([prediction(i, float(i > 2)) for i in range(6)])
    assert not statistics.is_graded({"base": plain})
    assert "score" not in tables.accuracy_table({"base": plain}).rows[0]
    (axes,) = plots.accuracies({"base": plain}).axes
    assert axes.get_ylabel() == "accuracy"


def test_scores_are_compared_item_by_item_where_both_have_one(evaluated):
    recipe, summaries = evaluated

    class Folder:
        def __init__(self, name):
            self.dir = recipe.run_dir / "eval" / name

    (compared,) = evaluate.comparisons({name: Folder(name) for name in summaries})
    # Seven of the eight items that both have a score for are better, one is worse.
    assert (compared["n"], compared["won"], compared["lost"]) == (8, 7, 1)
    assert compared["difference"] == pytest.approx((sum(SFT[:8]) - sum(BASE[:8])) / 8)
    assert compared["p"] == pytest.approx(0.0703, abs=1e-4)  # two-sided sign test, 7 of 8
    assert 0 < compared["interval"][0] < compared["difference"] < compared["interval"][1] < 0.5
    assert len(_scores(recipe.run_dir, "base")) == 9


def test_the_gate_goes_by_scores(evaluated):
    assert evaluated

    def held_to(**rule) -> list:
        rules = [{"first": "base", "second": "sft", **rule}]
        return gate(load_recipe(overrides={"evaluate.gate": rules}))

    assert held_to(at_least=-5) == []
    (line,) = held_to()
    assert line.text.startswith("sft against base: +28.1 points (95% interval ")
    assert "McNemar's p = 0.07" in line.text
    (line,) = held_to(slice="a", at_least=60)
    assert "n = 4), the lower end must be above +60.0" in line.text


def test_the_report_shows_won_and_lost_by_score(evaluated):
    recipe, summaries = evaluated
    summary = {"split": "test", "stages": summaries, "comparisons": []}
    write_json(recipe.run_dir / "eval" / "summary.json", summary)
    shown = "\n".join(report._examples(recipe.run_dir, summary))
    assert shown.count("**won**") == 2 and shown.count("**lost**") == 1
    assert "**won**: 0?\n" in shown and "(answer:" not in shown and "answer 0.75" in shown
    assert "`check.threshold`" in report._explained(summaries)
    assert "boxed" not in report._explained({"base": {"score": 1.0, "accuracy": 1.0}})


def test_answers_of_which_nothing_is_said(capsys):
    evaluate._refuse_unscored("sft", [prediction(0, None), prediction(1, 0.5)])
    assert capsys.readouterr().out == "sft: 1 of 2 answers have no score and are left out\n"
    with pytest.raises(UserError, match="says nothing of any answer of sft"):
        evaluate._refuse_unscored("sft", [prediction(0, None)])
    # One that was cut off counts as wrong, whatever the check would say: 0% would be no result.
    cut_off = prediction(1, 0.0) | {"truncated": True}
    with pytest.raises(UserError, match="says nothing of any answer of sft"):
        evaluate._refuse_unscored("sft", [prediction(0, None), cut_off])


def test_there_is_no_vote_on_checked_answers(tmp_path, monkeypatch):
    records = [prediction(i, score) for i, score in enumerate((0.0, 1.0, None, 0.5))]
    monkeypatch.setattr(items, "answer_file", lambda *given, **options: records)
    recipe = load_recipe(overrides={"evaluate.samples": 2})
    exam = items.Exam(recipe, "sft", lambda: None, [{"prompt": []}] * 2, tmp_path, check=opened("json"))
    sampled = exam.sample()
    assert (sampled["pass@1"], sampled["pass@k"], sampled["majority"]) == (0.25, 0.5, None)
    (row,) = tables.sampled_table({"sft": {"n": 2, "sampled": sampled}}).rows
    assert row["majority"] == "–"


def test_the_figure_of_pass_rates_knows_pairs_by_margin():
    record = {"pass_counts": {"0": 3, "1": 2, "2": 1}, "strategies": {"on_policy": 6}}
    settings = {"check": {}, "pairs": {"min_margin": 0.5}}
    for extra, grey in (({}, 2), ({"settings": settings}, 0), ({"settings": {"pairs": {}}}, 2)):
        (axes,) = plots.pass_counts(record | extra).axes
        greys = [bar for bar in axes.patches if bar.get_facecolor()[0] == bar.get_facecolor()[2]]
        assert len(greys) == grey and ("grey" in axes.get_title()) is bool(grey)


def test_detectable_of_right_and_wrong_is_what_it_was():
    assert statistics.compare([0, 0, 1, 1], [1, 1, 0, 1])["detectable"] == statistics.detectable(3, 4)
    many = statistics.compare([0.0] * 400, [0.5] * 400)
    assert many["detectable"] == pytest.approx(2.8 * 0.5 / 20)


# `tunebook init --check` ---------------------------------------------------------------------------------


def test_init_writes_the_check_and_refuses_one_that_is_not_known(tmp_path, monkeypatch, embedded):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init, "gpu_memory_gb", lambda: 0.0)
    rows = [{"question": f"City {i}?", "answer": '{"city": "Paris"}'} for i in range(30)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"did you mean json\? \(it is jsno\)"):
        init.init("my.jsonl", goal="both", check="jsno")
    assert not (tmp_path / "my.yaml").exists()
    path = init.init("my.jsonl", goal="both", check="json")
    assert (
        "check: json\n" in path.read_text()
        and "# The model answers questions; a right and a wrong" in path.read_text()
    )
    recipe = load_recipe(path)
    assert [checker.name for checker in recipe.check.checkers] == ["json"] and len(
        path.read_text().splitlines()
    ) <= 10
    (tmp_path / "my_checks.py").write_text("def score(prompts, completions, **columns): ...")
    init.init("my.jsonl", check="my_checks.py:score", force=True)
    assert load_recipe(path).check.checkers[0].kind == "python"
    init.init("my.jsonl", goal="both", force=True)
    assert "check:" not in path.read_text() and "questions with an `answer`" in path.read_text()
