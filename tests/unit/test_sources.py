"""Rows in the forms in which data sets are published, odd ones too; parts of sources; benchmark items."""

from __future__ import annotations

import json

import pytest

from tunebook.data import checks, sources
from tunebook.data.prepare import prepare
from tunebook.data.rows import Reject
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path, format, **source):
    """What a source of the default recipe (which has a system prompt) gives, checks of content included."""
    given = {"format": format, "path": str(path), "split": "train"} | source
    recipe = load_recipe(overrides={"data.sources": [given]})
    items = sources.read(recipe, recipe.run_dir / "images")
    return [item if isinstance(item, Reject) else checks.check_content(item) or item for item in items]


def asked(row) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in row.prompt if m["role"] != "system"]


def reasons(rows) -> list[tuple[str, str]]:
    return [(r.reason, r.detail) for r in rows if isinstance(r, Reject)]


def test_alpaca_rows(tmp_path):
    base = {"instruction": "Sort the numbers.", "input": "3, 1", "output": "1, 3"}
    stanford = base | {
        "text": "Below is an instruction that describes a task. ..."
    }  # tatsu-lab/alpaca has this column too
    empty = [base | {"input": given} for given in ("", "<noinput>", "No Input", "<no input>.", "N/A", None)]
    marks = base | {"instruction": "What do these say?", "input": "?!"}
    broken = [
        base | changed
        for changed in ({"output": ""}, {"output": None}, {"input": 3}, {"instruction": " ", "input": ""})
    ]
    broken.insert(2, {"instruction": "x", "input": ""})
    found = read(lines(tmp_path / "a.jsonl", [base, stanford, *empty, *broken, marks]), "alpaca")
    assert [asked(r) for r in found[:2]] == [[("user", "Sort the numbers.\n\n3, 1")]] * 2
    assert [asked(r) for r in found[2:8]] == [[("user", "Sort the numbers.")]] * 6
    assert all(
        r.completion == [{"role": "assistant", "content": "1, 3"}] and r.gold is None for r in found[:8]
    )
    assert found[0].prompt[0]["role"] == "system"
    assert reasons(found) == [
        ("empty completion", ""),
        ("empty cell", "output: empty"),
        (
            "missing column",
            "output: missing; the row has instruction, input: name it in `columns`, "
            "as in {output: instruction}",
        ),
        ("empty prompt", ""),
    ]
    assert found[-2].source_id == "a.jsonl:13"
    assert asked(found[-1]) == [("user", "What do these say?\n\n?!")]


def turns(*said: tuple[str, str | None]) -> dict:
    return {"conversations": [{"from": who, "value": text} for who, text in said]}


def test_sharegpt_rows(tmp_path):
    long = turns(
        ("system", "Be brief."), ("human", "Hi"), ("gpt", "Hello!"), ("human", "2 + 2?"), ("gpt", "4")
    )
    other = {
        "conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
        "system": "Be kind.",
    }
    broken = [
        turns(("gpt", "Hello!"), ("human", "Hi"), ("gpt", "Well?")),
        turns(("human", "Hi"), ("human", "Hello?"), ("gpt", "Yes")),
        turns(("human", "Hi"), ("gpt", "  "), ("human", "Well?"), ("gpt", "Yes")),
        turns(("human", "Hi"), ("gpt", "")),
        turns(("human", "Hi"), ("gpt", "Hello!"), ("human", "bye")),
        turns(("human", "Hi"), ("observation", "42"), ("gpt", "42")),
        turns(("human", "Hi"), ("gpt", None)),
        turns(("human", "Write it"), ("gpt", "Error: API call failed")),
        {"conversations": "Hi"},
        turns(),
    ]
    found = read(lines(tmp_path / "s.jsonl", [long, other, *broken]), "sharegpt")
    assert found[0].prompt[0] == {"role": "system", "content": "Be brief."}  # the row's own, not the recipe's
    assert asked(found[0]) == [("user", "Hi"), ("assistant", "Hello!"), ("user", "2 + 2?")]
    assert found[0].completion == [{"role": "assistant", "content": "4"}]
    assert found[1].prompt == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert reasons(found) == [
        ("broken turns", "turn 1 is the assistant's, the user's is expected"),
        ("broken turns", "turn 2 is the user's, the assistant's is expected"),
        ("broken turns", "turn 2 is empty"),
        ("empty completion", ""),
        ("broken turns", "the conversation ends with the user's message"),
        ("broken turns", "turn 2 is the tool's, the assistant's is expected"),
        ("wrong type", "conversations[1].value is empty, it should be text"),
        ("error text", "Error: API call failed"),
        ("wrong type", "conversations: not a list of messages"),
        ("wrong type", "conversations: not a list of messages"),
    ]


def test_gsm8k_rows(tmp_path):
    rows = [
        {
            "question": "How many clips?",
            "answer": "She sold 48/2 = <<48/2=24>>24 in May.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
        },
        {"question": "How much?", "answer": "It is 2*1,050 = $<<2*1050=2100>>2,100.\n#### 2,100"},
        {"question": "How cold?", "answer": "#### -5"},
        {"question": "How many?", "answer": "There are 7."},
        {"question": "How many?", "answer": "There are 7.\n####"},
        {"question": "How many?", "answer": 7},
    ]
    found = read(lines(tmp_path / "g.jsonl", rows), "gsm8k")
    assert [r.gold for r in found[:3]] == ["72", "2100", "-5"]
    assert found[0].completion[0]["content"] == "She sold 48/2 = 24 in May.\nIn all 48+24 = 72.\n\\boxed{72}"
    assert found[2].completion[0]["content"] == "\\boxed{-5}"
    assert reasons(found) == [("no result", "answer: no #### before the result")] * 3


def test_other_names_of_columns(tmp_path):
    path = lines(
        tmp_path / "c.jsonl",
        [{"instruct": "2 + 2?", "reply": "It is 4.", "label": 4}, {"instruct": "2 + 3?", "label": 5}],
    )
    found = read(path, "chat", columns={"prompt": "instruct", "completion": "reply", "answer": "label"})
    assert (asked(found[0]), found[0].completion[0]["content"], found[0].gold) == (
        [("user", "2 + 2?")],
        "It is 4.",
        "4",
    )
    missing = "completion: missing; `columns` takes it from 'reply', but the row has instruct, label"
    assert reasons(found) == [("missing column", missing)]
    found = read(path, "alpaca", columns={"instruction": "instruct", "output": "reply"})
    assert asked(found[0]) == [("user", "2 + 2?")]


def test_kinds_of_files(tmp_path):
    rows = [{"instruction": f"Say {i}, please.", "input": "", "output": f'"{i}"\nand é'} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps([*rows, "no row"], indent=1))
    lines(tmp_path / "l.json", rows)
    cells = "\n".join(f'"Say {i}, please.",,"""{i}""\nand é"' for i in range(3))
    (tmp_path / "x.csv").write_text(f"instruction,input,output\n{cells}\n", encoding="utf-8-sig")
    for name in ("a.json", "l.json", "x.csv"):
        found = [r for r in read(tmp_path / name, "alpaca") if not isinstance(r, Reject)]
        assert [(asked(r)[0][1], r.completion[0]["content"]) for r in found] == [
            (r["instruction"], r["output"]) for r in rows
        ], name
        assert [r.source_id for r in found] == [f"{name}:{i}" for i in (1, 2, 3)]
    assert reasons(read(tmp_path / "a.json", "alpaca")) == [("schema", "not an object")]
    (tmp_path / "cut.json").write_text('[{"instruction": "x"')
    with pytest.raises(UserError, match=r"data\.sources: cannot read .*cut\.json"):
        read(tmp_path / "cut.json", "alpaca")
    with pytest.raises(UserError, match=r"cannot read rows\.xlsx; give a \.jsonl, .* file .*, or a hub id"):
        read("rows.xlsx", "alpaca")


def test_a_part_of_a_source_is_drawn_by_seed_and_apart_from_the_others(tmp_path):
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(400)]
    one, other = lines(tmp_path / "one.jsonl", rows), lines(tmp_path / "other.jsonl", rows[:50])

    def drawn(given, seed=0):
        recipe = load_recipe(
            overrides={"data.sources": [{"format": "chat", "split": "train"} | s for s in given]}, seed=seed
        )
        return [
            r.question
            for r in sources.read(recipe, recipe.run_dir / "images")
            if r.source_id.startswith("one")
        ]

    everything = drawn([{"path": one}])
    count, share = drawn([{"path": one, "rows": 40}]), drawn([{"path": one, "rows": 0.1}])
    assert len(everything) == 400 and len(count) == 40 and 20 < len(share) < 60
    assert count == sorted(count, key=everything.index) and set(count) & set(
        share
    )  # in the file's order; the same luck
    assert drawn([{"path": one, "rows": 40}]) == count != drawn([{"path": one, "rows": 40}], seed=1)
    assert drawn([{"path": other, "rows": 5}, {"path": one, "rows": 40}]) == count
    assert drawn([{"path": one, "rows": 1000}]) == drawn([{"path": one, "rows": 1.0}]) == everything
    lines(tmp_path / "one.jsonl", [{"prompt": "New?", "completion": "Yes."}, *rows[::-1]])
    assert set(share) == set(drawn([{"path": one, "rows": 0.1}])) - {"New?"}


def said(prompt: str, answer: str) -> list[dict]:
    return [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}]


def test_the_recipes_load():
    qwen = load_recipe("qwen3-4b-instruct")
    batches = (qwen.sft["per_device_train_batch_size"], qwen.sft["gradient_accumulation_steps"])
    assert batches == ("auto", 128)
    assert (
        qwen.lora["r"],
        qwen.sft["learning_rate"],
        qwen.sft["num_train_epochs"],
        qwen.model.load_in_4bit,
    ) == (64, 2e-4, 1, True)
    small, large = load_recipe("qwen3-4b-16gb"), load_recipe("qwen3-4b-80gb")
    assert (small.model.max_seq_length, small.model.load_in_4bit, large.model.load_in_4bit) == (
        1024,
        True,
        False,
    )
    assert (
        small.data.sources[0].rows == 8000
        and small.sft["learning_rate"] == large.sft["learning_rate"] == 2e-4
    )
    assert (
        qwen.pairs.dataset == "HuggingFaceH4/ultrafeedback_binarized"
        and qwen.pairs.dataset_split == "train_prefs"
    )
    assert len(qwen.evaluate.benchmarks.tasks) == 5
    small = load_recipe("smollm2-alpaca")
    for section in ("lora", "sft", "dpo"):
        own, theirs = getattr(small, section), getattr(qwen, section)
        assert set(own) == set(theirs), section  # the same shape


BENCHMARKS = {
    "arc_challenge": {
        "id": "1",
        "question": "Which gas do plants take out of the air in order to make their own food?",
        "choices": {},
    },
    "gsm8k": {
        "question": "Tom has 17 apples and buys 26 more at the market. How many has he got?",
        "answer": "43\n#### 43",
    },
    "hellaswag": {
        "ctx_a": "A man",
        "ctx_b": "he",
        "ctx": "A man cracks two eggs into a hot pan on the stove. he",
        "endings": ["fries them"],
    },
    "winogrande": {
        "sentence": "The old trophy does not fit in the suitcase because the _ is much too big.",
        "option1": "trophy",
        "option2": "suitcase",
    },
    "own": {"a": "x", "stem": "Name the river that flows through the middle of the city of Vienna today."},
}


def test_train_rows_that_hold_a_benchmark_item_are_quarantined(tmp_path, embedded):
    folder = tmp_path / "items"
    folder.mkdir()
    for task, item in BENCHMARKS.items():
        lines(folder / f"{task}.jsonl", [item])
    lines(
        folder / "gsm8k.train.jsonl",
        [
            {
                "question": "Ann has 5 pens and loses 1 of them on her way home. How many are left?",
                "answer": "#### 4",
            }
        ],
    )
    held = {
        "arc_challenge": BENCHMARKS["arc_challenge"]["question"],
        "gsm8k": "Solve this. " + BENCHMARKS["gsm8k"]["question"],
        "hellaswag": BENCHMARKS["hellaswag"]["ctx"],
        "winogrande": "The old trophy does not fit in the suitcase because the trophy is much too big.",
        "own": BENCHMARKS["own"]["stem"],
    }
    free = [
        "Tom has 18 apples and buys 26 more at the market. How many has he got?",  # other numbers
        "Ann has 5 pens and loses 1 of them on her way home. How many are left?",  # a few-shot example
    ]
    path = lines(
        tmp_path / "t.jsonl", [{"prompt": p, "completion": "An answer."} for p in [*held.values(), *free]]
    )
    given = {"data.sources": [{"format": "chat", "path": path, "split": "train"}], "data.max_aside": 0.8}
    recipe = load_recipe(overrides=given | {"evaluate.benchmarks.data": str(folder)})
    record = prepare(recipe)
    rejects = [
        json.loads(line) for line in (recipe.run_dir / "data" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert [r["reason"] for r in rejects] == ["in a benchmark"] * 5
    assert [r["detail"].split(" of ")[-1] for r in rejects] == [f"{task}:1" for task in held]
    assert record["rows"]["train"] == 2
    assert (
        prepare(load_recipe(overrides=given))["rows"]["train"] == 7
    )  # without them, and not taken from the run before
    with pytest.raises(UserError, match=r"evaluate\.benchmarks\.data: no folder"):
        prepare(load_recipe(overrides=given | {"evaluate.benchmarks.data": str(tmp_path / "none")}))
    (folder / "own.jsonl").write_text("{broken\n")
    with pytest.raises(UserError, match=r"evaluate\.benchmarks\.data: own\.jsonl:1: bad JSON"):
        prepare(recipe)
