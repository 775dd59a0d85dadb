"""The real lm-evaluation-harness on the embedded model, with small files in the five benchmarks' formats."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import sys
from pathlib import Path

import pytest
import whole_recipe
import yaml

from tunebook.evaluation import benchmarks, report
from tunebook.generation import engines
from tunebook.generation.local import Local
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import read_json, read_jsonl
from tunebook.runs.stage import Stage

PLANTS = {
    "id": "0",
    "question": "What do plants need to make food?",
    "choices": {"text": ["sunlight", "rocks", "plastic", "sand"], "label": list("ABCD")},
    "answerKey": "A",
}
LIQUID = {
    "id": "1",
    "question": "Which is a liquid?",
    "choices": {"text": ["water", "iron", "wood", "glass"], "label": list("ABCD")},
    "answerKey": "A",
}
DISHES = {
    "id": "0",
    "question": "Where do you put dirty dishes?",
    "question_concept": "x",
    "choices": {"text": ["sink", "garden", "bed", "moon", "car"], "label": list("ABCDE")},
    "answerKey": "A",
}
BOOK = {
    "id": "1",
    "question": "What do you read?",
    "question_concept": "x",
    "choices": {"text": ["stone", "book", "soup", "shoe", "rain"], "label": list("ABCDE")},
    "answerKey": "B",
}
EGG = {
    "activity_label": "Cooking",
    "ctx_a": "A man cracks an egg into a pan.",
    "ctx_b": "he",
    "ctx": "A man cracks an egg into a pan. he",
    "endings": ["fries the egg.", "flies to the moon.", "paints the wall.", "reads a tree."],
    "label": "0",
    "source_id": "x",
    "split": "val",
    "split_type": "indomain",
}
ITEMS = {
    "arc_challenge": [PLANTS, LIQUID, PLANTS | {"id": "2"}, LIQUID | {"id": "3"}],
    "commonsense_qa": [DISHES, BOOK],
    "gsm8k": [
        {
            "question": f"Tom has {n} apples and buys 2 more. How many has he?",
            "answer": f"He has {n} + 2 = {n + 2}.\n#### {n + 2}",
        }
        for n in (3, 4, 5)
    ],
    "hellaswag": [{"ind": 0, **EGG}, {"ind": 1, **EGG}],
    "winogrande": [
        {
            "sentence": "The trophy does not fit in the suitcase because the _ is too big.",
            "option1": "trophy",
            "option2": "suitcase",
            "answer": "1",
        },
        {
            "sentence": "The ball broke the window because the _ was hard.",
            "option1": "window",
            "option2": "ball",
            "answer": "2",
        },
    ],
}
OWN = r"""
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "The capital of {{country}} is"
doc_to_target: 0
doc_to_choice: "{{[right, wrong]}}"
metric_list: [{metric: acc}]
"""


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    """The default recipe with an adapter (a fresh one: it changes nothing) in its run, and local items."""
    data = tmp_path / "data"
    data.mkdir()
    for task, items in ITEMS.items():
        (data / f"{task}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    shots = [
        {
            "question": f"Ann has {n} pens and loses 1. How many has she?",
            "answer": f"She has {n} - 1.\n#### {n - 1}",
        }
        for n in (3, 4, 5)
    ]
    (data / "gsm8k.train.jsonl").write_text("".join(json.dumps(item) + "\n" for item in shots))
    own = tmp_path / "own"
    own.mkdir()
    (own / "capitals.yaml").write_text(OWN)
    capitals = [
        {"country": "France", "right": "Paris", "wrong": "qzxv qzxv"},
        {"country": "Italy", "right": "Rome", "wrong": "qzxv qzxv"},
    ]
    (own / "capitals.jsonl").write_text("".join(json.dumps(item) + "\n" for item in capitals))
    content = whole_recipe.content("smollm2-math")
    given = {
        "tasks": [*ITEMS, "capitals"],
        "data": str(data),
        "include": str(own),
        "shots": {"gsm8k": 2},
        "max_new_tokens": 40,
        "batch_size": 4,
    }
    content["evaluate"]["benchmarks"] = given
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_five_benchmarks_and_a_task_of_ones_own(recipe_file, monkeypatch):
    from tunebook.models import adapters, loading

    recipe = load_recipe(recipe_file)
    model, tokenizer = loading.load_model(recipe)
    with Stage(recipe, "sft", {}, {}).open() as folder:
        adapters.save_adapter(adapters.add_lora(model, recipe), tokenizer, folder / "adapter")
    loads = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda r: loads.append(1) or load(r))
    summary = benchmarks.bench(recipe)
    assert len(loads) == 1  # for two models and six tasks
    assert list(summary["tasks"]) == [*ITEMS, "capitals"]
    for task, found in summary["tasks"].items():
        assert found["base"] == found["sft"], task  # an untrained adapter changes nothing
        assert found["base"]["n"] == len(ITEMS.get(task, [1, 2]))
    assert [found["base"]["metric"] for found in summary["tasks"].values()] == [
        "acc_norm",
        "acc",
        "exact_match",
        "acc_norm",
        "acc",
        "acc",
    ]
    assert (summary["tasks"]["gsm8k"]["base"]["shots"], summary["tasks"]["capitals"]["base"]["score"]) == (
        2,
        1.0,
    )
    assert (
        all((c["difference"], c["p"]) == (0, 1) for c in summary["comparisons"])
        and len(summary["comparisons"]) == 6
    )
    lines = (recipe.run_dir / "bench" / "sft" / "gsm8k" / "items.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    assert [i["doc_id"] for i in items] == [0, 1, 2] and items[0]["target"].endswith("#### 5")
    for item in items:
        assert item["score"] == float(item["answer"][0] == item["target"].rsplit(" ", 1)[-1])

    # Interrupted after some tasks: only what is missing runs again; changed items make their task stale.
    shutil.rmtree(recipe.run_dir / "bench" / "sft" / "capitals")
    ran = []
    run = benchmarks._run
    monkeypatch.setattr(benchmarks, "_run", lambda r, missing: ran.extend(missing) or run(r, missing))
    assert benchmarks.bench(recipe) == summary
    assert ran == [("sft", "capitals")] and benchmarks.bench(recipe) == summary and len(ran) == 1
    path = Path(recipe.evaluate.benchmarks.data) / "winogrande.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert (
        not benchmarks.bench_stage(recipe, "base", "winogrande").done
        and benchmarks.bench_stage(recipe, "base", "gsm8k").done
    )

    text = report.write(recipe.run_dir)[0].read_text()
    assert (
        "## Benchmarks" in text
        and "| gsm8k | base | 3 |" in text
        and "| winogrande | base → sft | 2 | +0.0" in text
    )
    assert "bench/sft/gsm8k" in read_json(recipe.run_dir / "manifest.json")["stages"]


def test_scores_from_a_served_model_are_those_of_the_model_here_by_a_stand_in_for_vllm(
    recipe_file, monkeypatch
):
    import answering
    import completing

    from tunebook.models import adapters

    tasks = {"evaluate.benchmarks.tasks": ["arc_challenge", "gsm8k"], "model.dtype": "float32"}
    recipe = load_recipe(recipe_file, overrides=tasks)
    here = benchmarks.bench(recipe, ["base"])
    records = {}
    for task in here["tasks"]:
        records[task] = read_jsonl(recipe.run_dir / "bench" / "base" / task / "items.jsonl")
    tasks |= {"generate.engine": "vllm", "generate.vllm": sys.executable}
    recipe = load_recipe(recipe_file, overrides=tasks)
    asked, started = [], []
    model, tokenizer = adapters.load_stages(recipe, ["base"])
    answer = completing.complete(model, tokenizer)

    @contextlib.contextmanager
    def serve(program, serving, config, log):
        started.append(serving)
        with answering.serving(
            str, counts=0, complete=lambda request: asked.append(request) or answer(request)
        ) as url:
            yield url

    monkeypatch.setattr(engines.vllm, "serve", serve)
    monkeypatch.setenv("OPENAI_API_KEY", "of another service")
    assert benchmarks.bench(recipe, ["base"], force=True)["tasks"] == here["tasks"]
    (serving,) = started
    # 25 examples of ARC are far longer than the recipe's own rows.
    assert serving.context == benchmarks.PROMPT_TOKENS + 40
    assert {request["model"] for request in asked} == {"base"}
    generated = [request for request in asked if request["max_tokens"] == 40]
    assert len(generated) == 3 and all(request["stop_token_ids"] for request in generated)
    for task, before in records.items():
        folder = recipe.run_dir / "bench" / "base" / task
        record = read_json(folder / "stage.json")
        assert record["engine"]["name"] == "vllm" and record["engine"]["mean_logp_difference"] < 1e-3
        for old, new in zip(before, read_jsonl(folder / "items.jsonl"), strict=True):
            assert old["doc_id"] == new["doc_id"]
            if task == "gsm8k":
                assert old["answer"] == new["answer"]
            else:
                logps = [[float(choice[0]) for choice in item["answer"]] for item in (old, new)]
                assert logps[0] == pytest.approx(logps[1], abs=1e-3)


def test_what_cannot_be_run_is_one_line(recipe_file):
    wrong = load_recipe(recipe_file, overrides={"evaluate.benchmarks.tasks": ["hellaswagg"]})
    with pytest.raises(UserError, match="no task 'hellaswagg' in lm-evaluation-harness or "):
        benchmarks.bench(wrong)
    fetched = load_recipe(recipe_file, overrides={"evaluate.benchmarks.tasks": ["piqa"]})
    with pytest.raises(
        UserError, match=r"piqa cannot be run: .* give its items with evaluate\.benchmarks\.data"
    ):
        benchmarks.bench(fetched)
    path = Path(fetched.evaluate.benchmarks.data) / "hellaswag.jsonl"
    path.write_text('{"nothing": "of use"}\n')
    with pytest.raises(UserError, match="hellaswag cannot be run"):
        benchmarks.bench(load_recipe(recipe_file, overrides={"evaluate.benchmarks.tasks": ["hellaswag"]}))
    assert not list(fetched.run_dir.rglob("stage.json"))
    with pytest.raises(UserError, match="no stage 'stf'"):
        benchmarks.bench(load_recipe(recipe_file), ["stf"])


GROUPS = {
    "geography.yaml": "group: geography\ntask: [capitals, {group: further, task: [rivers, {task: seas}]}]\n",
    "rivers.yaml": OWN.replace("task: capitals", "task: rivers\ntag: water"),
}


@pytest.fixture
def only_own(monkeypatch):
    """The harness without its own thousands of tasks, and without a model.

    Yields what it is given in place of one.
    """
    import lm_eval
    from lm_eval import tasks
    from lm_eval.models import huggingface

    loaded, given = [], []
    inner = type("Tokenizer", (), {})()
    processor = type("Processor", (), {"tokenizer": inner, "chat_template": "the recipe's"})()
    sample = {
        "doc_id": 0,
        "filter": "none",
        "metrics": ["acc"],
        "acc": 1.0,
        "target": 0,
        "filtered_resps": ["x"],
    }
    monkeypatch.setattr(tasks, "TaskManager", functools.partial(tasks.TaskManager, include_defaults=False))
    monkeypatch.setattr(huggingface, "HFLM", lambda **how: given.append(how["tokenizer"]))
    monkeypatch.setattr(
        lm_eval,
        "simple_evaluate",
        lambda **_: {"samples": {task: [sample] for task in ("capitals", "rivers")}, "n-shot": {}},
    )
    monkeypatch.setattr(benchmarks.backend, "backend", lambda: None)
    monkeypatch.setattr(
        engines, "load_stages", lambda recipe, names: loaded.append(names) or (None, processor)
    )
    monkeypatch.setattr(
        engines,
        "local",
        lambda model, tokenizer, name: contextlib.nullcontext(Local(model, tokenizer)),
    )
    return loaded, given


def test_a_group_of_tasks_is_refused_before_a_model_is_loaded(recipe_file, only_own):
    own = recipe_file.parent / "own"
    for name, text in GROUPS.items():
        (own / name).write_text(text)
    for tasks, said in (
        (["capitals", "geography"], "'geography' is a group of tasks: .* capitals, rivers$"),
        (["water"], "'water' is .* rivers$"),
    ):
        with pytest.raises(UserError, match=said):
            benchmarks.bench(
                load_recipe(recipe_file, overrides={"evaluate.benchmarks.tasks": tasks}), ["base"]
            )
    assert not only_own[0]
    found = benchmarks.bench(
        load_recipe(recipe_file, overrides={"evaluate.benchmarks.tasks": ["rivers"]}), ["base"]
    )
    assert found["tasks"]["rivers"]["base"]["score"] == 1


def test_the_harness_is_given_the_tokenizer_in_a_processor(recipe_file, only_own):
    benchmarks.bench(
        load_recipe(recipe_file, overrides={"evaluate.benchmarks.tasks": ["capitals"]}), ["base"]
    )
    (loaded,), (given,) = only_own
    assert (loaded, type(given).__name__, given.chat_template) == (
        ["base"],
        "Tokenizer",
        "the recipe's",
    )
