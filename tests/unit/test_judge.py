"""A judge on a stand-in server: verdicts, orders, bias, agreement with people, budget, refusals."""

from __future__ import annotations

import json

import pytest
from answering import BOTH, serving, takes_first, takes_longer

from tunebook.checkers.judge import Comparison, Judge, Outcome, conversation_text, reliability, verdict
from tunebook.evaluation import report, tables
from tunebook.evaluation.statistics import length_controlled
from tunebook.evaluation.win_rates import counts, win_rates
from tunebook.generation.generate import AnswerFile
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
SHORT, LONG = "Air scatters blue light.", "Air scatters blue light, as everybody who looks up can see."


def judge_at(url: str, **server) -> Judge:
    recipe = load_recipe(overrides={"judge": {"server": {"url": url, "model": "m", **server}}})
    return Judge(recipe, recipe.judge)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("[[A]]", "A"),
        ("Not [[A]], since it is wrong. [[B]]", "B"),
        ("<think>[[A]]</think>\n[[ C ]]", "C"),
        ("**B**", "B"),
        ("Both are fine.\nanswer a.", "A"),
        ("A", "A"),
        ("A is better", None),
        ("I cannot compare these.", None),
        ("", None),
    ],
)
def test_a_verdict_is_read(text, letter):
    assert verdict(text) == letter


@pytest.mark.parametrize(
    ("orders", "score"),
    [
        (("A", "B"), 0.0),
        (("B", "A"), 1.0),
        (("C", "C"), 0.5),
        (("A", "A"), 0.5),  # it contradicts itself
        (("B", "C"), 0.5),
        (("B", None), None),
    ],
)
def test_only_what_holds_in_both_orders_counts(orders, score):
    assert Outcome(*orders).score == score


def test_a_judge_that_always_takes_the_first_says_nothing(tmp_path):
    with serving(takes_first) as url:
        comparisons = [Comparison(QUESTION, SHORT, LONG), Comparison(QUESTION, LONG, SHORT)] * 5
        outcomes = judge_at(url).compare(tmp_path / "judge.jsonl", comparisons, "judging")
    found = counts(comparisons, outcomes)
    assert (found["first_place"], found["contradicted"], found["tied"], found["n"]) == (1.0, 10, 10, 10)
    assert (found["win_rate"], found["won"], found["p"], found["longer"]) == (0.5, 0, 1.0, None)


def test_a_judge_that_always_takes_the_longer_is_told_from_a_good_model(tmp_path):
    with serving(takes_longer) as url:
        # The second model is longer in 8 of 10 items, by as much as it is shorter in the others.
        comparisons = [Comparison(QUESTION, SHORT, LONG)] * 8 + [Comparison(QUESTION, LONG, SHORT)] * 2
        outcomes = judge_at(url).compare(tmp_path / "judge.jsonl", comparisons, "judging")
    found = counts(comparisons, outcomes)
    assert (found["win_rate"], found["longer"], found["first_place"]) == (0.8, 1.0, 0.5)
    assert found["length_controlled"] == pytest.approx(0.5, abs=0.03)
    assert found["interval"][0] < 0.8 < found["interval"][1] and found["contradicted"] == 0


def test_the_rate_at_equal_length():
    # Length says nothing here: the rate stays.
    assert length_controlled([1, 1, 1, 0] * 5, [10, -10, 10, -10] * 5) > 0.7
    assert length_controlled([1, 0, 1, 0], [0, 0, 0, 0]) == 0.5
    # Always longer: length and quality cannot be told apart.
    assert length_controlled([1, 1, 1], [3, 8, 5]) is None


def test_a_conversation_is_read_whole():
    assert conversation_text(QUESTION) == "Why is the sky blue?"
    prompt = [*QUESTION, {"role": "assistant", "content": "Scattering."}, {"role": "user", "content": "Why?"}]
    assert conversation_text(prompt) == "user: Why is the sky blue?\n\nassistant: Scattering.\n\nuser: Why?"


def test_refusals_are_counted_and_an_interrupted_judge_asks_nothing_twice(tmp_path, capsys):
    asked = []

    def answer(prompt: str) -> str | None:
        asked.append(prompt)
        return None if "forbidden" in prompt else takes_longer(prompt)

    comparisons = [Comparison(QUESTION, SHORT, LONG), Comparison(QUESTION, "forbidden", LONG)]
    path = tmp_path / "judge.jsonl"
    with serving(answer) as url:
        outcomes = judge_at(url, concurrency=1).compare(path, comparisons, "judging")
        assert [outcome.score for outcome in outcomes] == [1.0, None]
        found = counts(comparisons, outcomes)
        assert (found["n"], found["refused"], found["won"], found["win_rate"]) == (2, 1, 1, 1.0)
        assert len(asked) == 4
        # What is there is not asked again; of a file that a kill has cut short only the rest is.
        judge = judge_at(url)
        assert judge.compare(path, comparisons, "judging") == outcomes and len(asked) == 4
        assert judge.usage.requests == 2  # those of before: the budget is one for all of it
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:-1]))
        judge_at(url).compare(path, comparisons, "judging")
        assert len(asked) == 5
    # Another question is another comparison.
    with serving(takes_first) as url, pytest.raises(UserError, match="the judge gives no verdict"):
        reliability(comparisons, [Outcome(None, None)] * 2)


def test_a_budget_ends_it_and_names_its_own_key(tmp_path):
    with serving(takes_longer) as url:
        judge = judge_at(url, concurrency=1, price_in=1e4, budget=2.5)  # 100 tokens in cost 1
        with pytest.raises(UserError, match=r"raise judge\.server\.budget"):
            judge.compare(tmp_path / "j.jsonl", [Comparison(QUESTION, SHORT, LONG)] * 3, "judging")
    with AnswerFile(tmp_path / "j.jsonl") as kept:
        assert len(list(kept)) == 3


def test_win_rates_of_a_run_and_agreement_with_people(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEBOOK_RUNS", str(tmp_path))

    def likes_blue(prompt: str) -> str:
        _, a, b = BOTH.search(prompt).groups()
        if ("blue" in a) == ("blue" in b):
            return "[[C]]"
        return "[[A]]" if "blue" in a else "[[B]]"

    texts = {
        "base": ["red", "red", "blue", "red"],
        "sft": ["blue"] * 4,
        "dpo": ["blue", "red", "blue", "blue"],
    }
    items = []
    folders = {}
    for stage, said in texts.items():
        folders[stage] = tmp_path / stage
        folders[stage].mkdir()
        lines = []
        for i, text in enumerate(said):
            lines.append(json.dumps({"index": i, "source_id": f"my:{i}", "answer": text}) + "\n")
        (folders[stage] / "predictions.jsonl").write_text("".join(lines))
    for i in range(4):
        items.append({"source_id": f"my:{i}", "prompt": [{"role": "user", "content": f"Colour {i}?"}]})
    human = [{"prompt": "Colour?", "chosen": "blue", "rejected": "red"}] * 3
    human += [{"prompt": "Colour?", "chosen": "red", "rejected": "blue"}, {"prompt": "Colour?"}]
    human += [{"prompt": "Colour?", "chosen": "red", "rejected": "green"}]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in human))
    with serving(likes_blue) as url:
        section = {"server": {"url": url, "model": "m"}, "human": str(tmp_path / "people.jsonl")}
        recipe = load_recipe(overrides={"judge": section})
        found = win_rates(recipe, recipe.judge, folders, items)
    steps = {}
    for compared in found["comparisons"]:
        steps[compared["first"], compared["second"]] = compared["won"], compared["lost"], compared["win_rate"]
    assert steps == {
        ("base", "sft"): (3, 0, 0.875),
        ("sft", "dpo"): (0, 1, 0.375),
        ("base", "dpo"): (2, 0, 0.75),
    }
    people = found["agreement"]
    assert (people["n"], people["decided"], people["agreed"], people["unread"]) == (5, 4, 3, 1)
    assert people["share"] == 0.75
    assert "in 75.0% (" in tables.agreement_text(people) and "the 4 cases of 5" in tables.agreement_text(
        people
    )
    row = tables.win_rate_table(found["comparisons"]).rows[0]
    assert row["step"] == "base → sft" and row["win_rate"].startswith("87.5% (") and row["won"] == "3"
    text = "\n".join(part for part in report._win_rates(found) if isinstance(part, str))
    assert "## Win rates by the judge" in text and "| base → sft | 4 | 87.5% (" in text


@pytest.mark.parametrize("section", [{}, {"model": "m", "server": {"url": "http://x/v1", "model": "m"}}])
def test_a_judge_is_a_server_or_a_model(section):
    with pytest.raises(UserError, match="should name a `server` or a `model`, one of the two"):
        load_recipe(overrides={"judge": section})
