"""Rows without an answer, but with a checker: from `prepare` over pairs to the evaluation and its report."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from api import body

from tunebook.data.prepare import prepare
from tunebook.data.storage import load, read_parquet
from tunebook.evaluation import report
from tunebook.evaluation.evaluate import eval_stage, evaluate
from tunebook.evaluation.gate import gate
from tunebook.generation.generate import read_records
from tunebook.pairs.pairs import pairs, pairs_stage
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
    """A server with OpenAI's interface that says the texts in its `said` in turn, to each question anew."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            question = json.loads(asked)["messages"][-1]["content"]
            with lock:
                text = running.said[counts[question] % len(running.said)]
                counts[question] += 1
            answer = json.dumps(body(text)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    lock = threading.Lock()
    counts = Counter()
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def write_recipe(tiny: Path, folder: Path, rows: list[dict], server, **sections) -> Path:
    """A short recipe for some rows beside it, whose pairs the server's answers make."""
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    url = f"http://127.0.0.1:{server.server_port}/v1"
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
            "server": {"url": url, "model": "m", "concurrency": 1},
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
