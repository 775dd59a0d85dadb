"""Rows without an answer, but with a checker or a judge: from `prepare` to the evaluation and its report."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from answering import serving, takes_longer

from tunebook.data.prepare import prepare
from tunebook.data.storage import load, read_parquet
from tunebook.evaluation import report
from tunebook.evaluation.evaluate import eval_stage, evaluate
from tunebook.evaluation.gate import gate
from tunebook.generation import local
from tunebook.generation.generate import read_records
from tunebook.pairs.pairs import pairs, pairs_stage
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import read_json

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
RIGHT = '{"city": "Paris"}'
SAID = {
    "json": [RIGHT, '{"town": "Paris"}', "It is Paris.", ""],
    # Of three instructions three, two, two and one are obeyed.
    "instructions": ["all right now", "all right, now", "All right now", "all, right and now"],
}
"""What the stand-in server answers to each question, one after the other."""


@pytest.fixture
def server():
    """A server that says the texts in its `said` in turn, to each question anew."""

    def answer(question: str) -> str:
        text = running.said[counts[question] % len(running.said)]
        counts[question] += 1
        return text

    counts = Counter()
    with serving(answer) as url:
        running = SimpleNamespace(url=url, said=[])
        yield running


def write_recipe(tiny: Path, folder: Path, rows: list[dict], server, **sections) -> Path:
    """A short recipe for some rows beside it, whose pairs the server's answers make."""
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "extends": "smollm2",
        "model": {"base": str(tiny), "dtype": "float32"},
        "data": {"sources": [{"path": "my.jsonl", "val": 0.1, "test": 0.2}]},
        "pairs": {
            "methods": ["on_policy"],
            "samples": 4,
            "val": 0,
            "max_length_ratio": 100,
            # One after the other: which answer is a question's first one matters here.
            "server": {"url": server.url, "model": "m", "concurrency": 1, "same_model": False},
        },
        "evaluate": {"max_new_tokens": 24, "batch_size": 8},
        **sections,
    }
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


QUESTIONS = [f"In which city is the {i}th tower, by the {i} bridges?" for i in range(60)]


def test_rows_for_json_go_all_the_way_without_an_answer(tiny, tmp_path, server):
    from tunebook.models import backend
    from tunebook.training.sft import sft

    backend.backend()
    server.said = SAID["json"]
    rows = [{"prompt": question, "completion": RIGHT} for question in QUESTIONS]
    rows[5]["completion"] = "It is Paris."
    path = write_recipe(
        tiny,
        tmp_path,
        rows,
        server,
        check={"name": "json", "schema": "city.json"},
        sft={"max_steps": 60, "learning_rate": 5e-3, "eval_strategy": "no", "save_strategy": "no"},
    )
    (tmp_path / "city.json").write_text(json.dumps(CITY))
    recipe = load_recipe(path)

    # 1) a row whose own answer does not fit the schema is put aside
    record = prepare(recipe)
    assert record["quarantined"] == {"wrong answer": 1} and record["inputs"].keys() == {
        "my.jsonl",
        "city.json",
    }
    (aside,) = (recipe.run_dir / "data" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(aside)["detail"] == "its score by json is 0, check.threshold is 1"

    # 2) pairs of one that fits against one that does not, though no row has an answer
    record = pairs(recipe)
    train = load(recipe, "train")
    assert record["samples"] == {"wrong": 2 * len(train), "right": len(train), "broken": len(train)}
    found = list(read_parquet(recipe.run_dir / "pairs" / "train.parquet"))
    assert len(found) == len(train) > 30
    for pair in found:
        assert (pair["chosen"][0]["content"], pair["gold"], pair["margin"]) == (RIGHT, None, 1.0)
        assert pair["rejected"][0]["content"] == '{"town": "Paris"}'  # it begins alike
        assert (pair["chosen_correct"], pair["rejected_correct"]) == (True, False)

    # 3) every stage is asked and scored
    sft(recipe)
    results = evaluate(recipe)
    assert results["base"]["accuracy"] == 0 and results["sft"]["accuracy"] > 0.5
    assert results["base"]["n"] == len(load(recipe, "test")) and "boxed" not in results["base"]
    first = read_records(recipe.run_dir / "eval" / "sft" / "predictions.jsonl")[0]
    assert first["score"] in (0, 1) and first["correct"] is (first["score"] == 1)
    (compared,) = read_json(recipe.run_dir / "eval" / "summary.json")["comparisons"]
    assert compared["won"] == results["sft"]["correct"] and compared["lost"] == 0
    rule = {"evaluate.gate": [{"first": "base", "second": "sft"}]}
    assert gate(load_recipe(path, overrides=rule)) == []
    assert gate(load_recipe(path, overrides={"evaluate.gate": [{"first": "sft", "second": "base"}]}))
    markdown, _ = report.write(recipe.run_dir)
    text = markdown.read_text()
    assert "**sft against base: better**" in text and "mean score" not in text and "boxed" not in text

    # 4) another schema is another check, for every stage that asks it
    keys = [recipe_stage.key for recipe_stage in (pairs_stage(recipe), eval_stage(recipe, "base"))]
    (tmp_path / "city.json").write_text(json.dumps(CITY | {"title": "a city"}))
    changed = [recipe_stage.key for recipe_stage in (pairs_stage(recipe), eval_stage(recipe, "base"))]
    assert not set(keys) & set(changed)


def test_instructions_give_pairs_of_best_against_worst_and_mean_scores(tiny, tmp_path, server):
    from tunebook.models import backend

    backend.backend()
    server.said = SAID["instructions"]
    column = ["lower", "no_commas", {"max_words": 3}]
    rows = [{"prompt": q, "completion": "all right", "instructions": column} for q in QUESTIONS]
    rows[7]["instructions"] = ["lowr"]
    path = write_recipe(tiny, tmp_path, rows, server, check="instructions")
    recipe = load_recipe(path, overrides={"pairs.min_margin": 0.5, "pairs.per_prompt": 3})
    record = prepare(recipe)
    assert record["quarantined"] == {"unknown instruction": 1}
    assert json.loads(load(recipe, "train")[0]["columns"]) == {"instructions": column}
    record = pairs(recipe)
    found = list(read_parquet(recipe.run_dir / "pairs" / "train.parquet"))
    sides = Counter((pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in found)
    best, *_, worst = SAID["instructions"]
    assert sides == {(best, worst): len(load(recipe, "train"))}
    assert record["margin"]["min"] == record["margin"]["max"] == pytest.approx(2 / 3)

    results = evaluate(recipe)
    predictions = read_records(recipe.run_dir / "eval" / "base" / "predictions.jsonl")
    assert results["base"]["score"] == pytest.approx(sum(p["score"] for p in predictions) / len(predictions))
    assert (
        results["base"]["score_interval"][0]
        <= results["base"]["score"]
        <= results["base"]["score_interval"][1]
    )


def test_a_judge_ranks_samples_and_compares_the_models_of_a_task(tiny, tmp_path, server, monkeypatch):
    """From `init` to the report, with a stand-in judge that always takes the longer answer."""
    from tunebook.init import init
    from tunebook.models import backend
    from tunebook.training.dpo import dpo
    from tunebook.training.sft import sft

    backend.backend()
    monkeypatch.chdir(tmp_path)
    server.said = ["It is Paris.", "", "It is Paris, as everybody knows.", "Paris."]
    rows = [{"prompt": question, "completion": "It is Paris."} for question in QUESTIONS[:40]]
    Path("my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = init("my.jsonl", model=str(tiny), goal="both")
    with serving(takes_longer) as judge:
        content = yaml.safe_load(path.read_text())
        content["judge"] = {"server": {"url": judge, "model": "j"}}
        content["pairs"] |= {"val": 0, "max_length_ratio": 100, "samples": 4}
        content["pairs"]["server"] = {
            "url": server.url,
            "model": "m",
            "concurrency": 1,
            "same_model": False,
        }
        content["model"] = {"base": str(tiny), "dtype": "float32"}
        quick = {"eval_strategy": "no", "save_strategy": "no"}
        content["sft"] = {"max_steps": 30, "learning_rate": 5e-3, **quick}
        content["dpo"] = {"max_steps": 2, **quick}
        content["evaluate"] = {"max_new_tokens": 16, "limit": 6}
        path.write_text(yaml.safe_dump(content))
        recipe = load_recipe(path)
        sft(recipe)
        record = pairs(recipe)
        dpo(recipe)
        evaluate(recipe)
    # 1) of three usable samples the longest wins both comparisons, the shortest none
    train = load(recipe, "train")
    assert record["samples"] == {"judged": 3 * len(train), "broken": len(train)}
    of_judge = record["judge"]
    assert (of_judge["n"], of_judge["longer"], of_judge["first_place"]) == (3 * len(train), 1.0, 0.5)
    assert of_judge["requests"] == 6 * len(train) and record["prompts"] == {"paired": len(train)}
    for pair in read_parquet(recipe.run_dir / "pairs" / "train.parquet"):
        assert pair["chosen"][0]["content"] == "It is Paris, as everybody knows."
        assert (pair["rejected"][0]["content"], pair["margin"]) == ("Paris.", 1.0)
        assert (pair["chosen_correct"], pair["rejected_correct"], pair["gold"]) == (None, None, None)
    # 2) each model is compared with the one before it, by lengths alone
    texts = {}
    for stage in ("base", "sft", "dpo"):
        predictions = read_records(recipe.run_dir / "eval" / stage / "predictions.jsonl")
        texts[stage] = [len(prediction["answer"].strip()) for prediction in predictions]
    compared = read_json(recipe.run_dir / "eval" / "summary.json")["judge"]["comparisons"]
    assert [(c["first"], c["second"]) for c in compared] == [("base", "sft"), ("sft", "dpo"), ("base", "dpo")]
    for step in compared:
        lengths = list(zip(texts[step["first"]], texts[step["second"]], strict=True))
        assert step["won"] == sum(before < after for before, after in lengths)
        assert step["lost"] == sum(before > after for before, after in lengths)
    text = report.write(recipe.run_dir)[0].read_text()
    assert "## Win rates by the judge" in text and "**By the judge, sft against base: " in text
    # 3) another prompt for the judge is another ranking, and other answers are not asked for
    changed = load_recipe(path, overrides={"judge.max_new_tokens": 32})
    assert pairs_stage(changed).key != pairs_stage(recipe).key
    assert eval_stage(changed, "base").key == eval_stage(recipe, "base").key


def test_a_local_judge_reads_both_orders_and_keeps_what_it_says(tiny, tiny_recipe, tmp_path, monkeypatch):
    """A tiny model of random weights: it says something, and never a verdict."""
    from tunebook.checkers import judge as judges

    recipe = load_recipe(tiny_recipe, overrides={"judge.model": str(tiny), "judge.max_new_tokens": 4})
    question = [{"role": "user", "content": "The capital of France?"}]
    comparisons = [
        judges.Comparison(question, "Paris.", "It is Paris."),
        judges.Comparison(question, "Lyon.", "Paris."),
    ]
    read = []
    rendered = local._rendered

    def render(source, prompt, images):
        read.append(prompt[0]["content"])
        return rendered(source, prompt, images)

    monkeypatch.setattr(local, "_rendered", render)
    kept = tmp_path / "judged.jsonl"
    outcomes = judges.Judge(recipe, recipe.judge).compare(kept, comparisons, "judging")
    assert len(read) == 4 and read[0].index("Paris.") < read[0].index("It is Paris.")
    assert read[1].index("It is Paris.") < read[1].rindex("Paris.")
    assert outcomes == [judges.Outcome(None, None)] * 2
    with pytest.raises(UserError, match="the judge gives no verdict"):
        judges.reliability(comparisons, outcomes)
    # What is kept is not asked again, and the model not even loaded.
    monkeypatch.setattr(judges.loading, "load_model", None)
    assert judges.Judge(recipe, recipe.judge).compare(kept, comparisons, "judging") == outcomes
    assert len(read) == 4
