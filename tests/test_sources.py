"""Rows in the forms in which data sets are published: what becomes of them, of odd ones too; parts of sources; benchmark items."""

from __future__ import annotations

import json
import math

import pytest
import tiny_text
import yaml

from tunebook.data import checks, sources
from tunebook.data.prepare import prepare
from tunebook.data.rows import Reject
from tunebook.pairs import existing
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path, format, **source):
    """What a source of the default recipe (which has a system prompt) gives, checks of content included."""
    given = {"format": format, "path": str(path), "split": "train"} | source
    recipe = load_recipe(overrides={"data.sources": [given]})
    return list(checks.accepted(sources.read(recipe, recipe.run_dir / "images"), [checks.check_content]))


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
        ("schema", "output: missing"),
        ("schema", "output: missing"),
        ("schema", "input: not text"),
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
        turns(("human", "Write it"), ("gpt", "I'm sorry, but I can't help with that.")),
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
        ("schema", "completion: the last message must be the assistant's, and alone"),
        (
            "schema",
            "conversations[1].from: 'observation' is none of human, user, gpt, chatgpt, assistant, system",
        ),
        ("schema", "conversations[1].value: not text"),
        ("error text or refusal", "I'm sorry, but I can't help with that."),
        ("schema", "conversations: not a list of turns"),
        ("schema", "messages: not a list of messages"),
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
    assert reasons(found) == [("schema", "answer: no #### before the result")] * 2 + [
        ("schema", "answer: not text")
    ]


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
    assert reasons(found) == [("schema", "completion: missing")]
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
    (tmp_path / "latin.csv").write_bytes(b"instruction,output\ncaf\xe9,x\n")
    for name in ("cut.json", "latin.csv"):
        with pytest.raises(UserError, match=rf"data\.sources: cannot read .*{name}"):
            read(tmp_path / name, "alpaca")
    with pytest.raises(
        UserError, match=r"cannot read rows\.xlsx; give a \.jsonl, \.json, \.parquet, \.csv file or a hub id"
    ):
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
    given = {"data.sources": [{"format": "chat", "path": path, "split": "train"}]}
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


def said(prompt: str, answer: str) -> list[dict]:
    return [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}]


def pairs_of(path, **config):
    keys = {"pairs.methods": ["dataset"], "pairs.dataset": str(path)} | {
        f"pairs.{k}": v for k, v in config.items()
    }
    recipe = load_recipe("smollm2-alpaca", overrides={"pairs.min_margin": None} | keys)
    prepare(recipe)
    return list(existing.read(recipe, lambda text: len(text.split()), recipe.run_dir / "pairs" / "images"))


def test_preference_sets_as_they_are_published(tmp_path, embedded):
    ultrafeedback = {
        "prompt": "Why is grass green?",
        "prompt_id": "ab12",
        "chosen": said("Why is grass green?", "Because of chlorophyll."),
        "rejected": said("Why is grass green?", "It is painted."),
        "messages": said("Why is grass green?", "Because of chlorophyll."),
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    }
    rows = [ultrafeedback]
    rows.append(ultrafeedback | {"score_rejected": 8.5})
    rows += [ultrafeedback | {side: said("Why is grass green?", "")} for side in ("chosen", "rejected")]
    rows.append(ultrafeedback | {"rejected": said("Another question?", "No.")})
    rows.append(ultrafeedback | {"score_chosen": "high"})
    question = json.loads((ROOT / "resources" / "sample" / "questions.jsonl").read_text().splitlines()[-1])[
        "question"
    ]
    rows.append(
        ultrafeedback | {"chosen": said(question, "14 euros"), "rejected": said(question, "13 euros")}
    )
    found = pairs_of(lines(tmp_path / "uf.jsonl", rows))
    assert found[0]["prompt"] == [{"role": "user", "content": "Why is grass green?"}]
    assert (found[0]["chosen"][0]["content"], found[0]["rejected"][0]["content"]) == (
        "Because of chlorophyll.",
        "It is painted.",
    )
    assert (found[0]["margin"], found[0]["chosen_correct"], found[0]["source_id"]) == (
        2.5,
        None,
        "uf.jsonl:1",
    )
    assert reasons(found) == [
        ("scored no better", "chosen 8.5, rejected 8.5"),
        ("empty completion", ""),
        ("empty completion", ""),
        ("schema", "chosen and rejected answer different prompts"),
        ("schema", "score_chosen: 'high' is not a number"),
        ("in the test or val split", found[-1].detail),
    ]
    # argilla/ultrafeedback-binarized-preferences-cleaned
    argilla = {k: ultrafeedback[k] for k in ("prompt", "chosen", "rejected")} | {
        "source": "x",
        "chosen-rating": 5.0,
        "rejected-rating": 4.5,
    }
    columns = {"score_chosen": "chosen-rating", "score_rejected": "rejected-rating"}
    assert pairs_of(lines(tmp_path / "ar.jsonl", [argilla]), columns=columns)[0]["margin"] == 0.5
    # Intel/orca_dpo_pairs, as .csv here: every value is text
    (tmp_path / "orca.csv").write_text(
        "system,question,chosen,rejected\nBe exact.,Is it so?,Yes.,No.\n,Is it now?,Yes.,No.\n"
    )
    found = pairs_of(tmp_path / "orca.csv", columns={"prompt": "question"})
    assert found[0]["prompt"] == [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "Is it so?"},
    ]
    assert found[1]["prompt"] == [{"role": "user", "content": "Is it now?"}]
    assert [p["margin"] for p in found] == [None, None]


def test_pairs_of_too_small_a_margin_are_quarantined(tmp_path, embedded):
    def row(i: int, **scores: float) -> dict:
        return {"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "No."} | scores

    scored = [row(i, score_chosen=5.0, score_rejected=5.0 - i) for i in range(1, 5)]
    path = lines(tmp_path / "m.json", [*scored, row(9)])
    assert [p["margin"] for p in pairs_of(path)] == [1.0, 2.0, 3.0, 4.0, None]
    found = pairs_of(path, min_margin=2)
    assert [p["margin"] for p in found if isinstance(p, dict)] == [2.0, 3.0, 4.0]
    assert reasons(found) == [
        ("margin too small", "chosen 5.0, rejected 4.0"),
        ("schema", "score_chosen: missing, and pairs.min_margin is set"),
    ]
    assert len(pairs_of(path, rows=2)) == 2


def test_the_sample_is_sound(embedded):
    """What ships passes every check, and no shortcut tells its better answers from the worse."""
    from tunebook.pairs.pairs import pairs

    recipe = load_recipe("smollm2-alpaca")
    record = prepare(recipe)
    assert record["quarantined"] == {}
    assert (
        record["rows"]["train"] + record["rows"]["val"] == 120
        and record["rows"]["test"] == 60
        and record["rows"]["val"] > 8
    )
    made = pairs(recipe)
    assert made["quarantined"] == {} and sum(made["rows"].values()) == 60 and made["rows"]["val"] > 6
    assert made["margin"]["min"] >= 2 and made["length_only_accuracy"] < 0.7


def test_the_recipes_load():
    qwen = load_recipe("qwen3-4b-instruct")
    assert qwen.sft["per_device_train_batch_size"] * qwen.sft["gradient_accumulation_steps"] == 128
    assert (
        qwen.lora["r"],
        qwen.sft["learning_rate"],
        qwen.sft["num_train_epochs"],
        qwen.model.load_in_4bit,
    ) == (64, 2e-4, 3, True)
    assert (
        qwen.pairs.dataset == "HuggingFaceH4/ultrafeedback_binarized"
        and qwen.pairs.dataset_split == "train_prefs"
    )
    assert len(qwen.evaluate.benchmarks.tasks) == 5
    small = load_recipe("smollm2-alpaca")
    for section in ("lora", "sft", "dpo"):
        own, theirs = getattr(small, section), getattr(qwen, section)
        assert set(own) == set(theirs), section  # the same shape


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory, embedded):
    from tunebook.models import backend

    backend.backend()
    path = tmp_path_factory.mktemp("model") / "tiny-base"
    tiny_text.qwen3(path, embedded)
    return path


@pytest.mark.slow
def test_a_base_model_learns_to_end_its_turns(tiny_base, tmp_path, monkeypatch):
    """The small recipe with the big one's model section, whole: SFT, pairs, DPO, evaluation, merged weights."""
    from tunebook.evaluation.evaluate import evaluate
    from tunebook.models import adapters, loading
    from tunebook.pairs.pairs import existing_pairs, pairs_stage
    from tunebook.training import audits
    from tunebook.training.dpo import dpo
    from tunebook.training.sft import sft

    content = yaml.safe_load((ROOT / "configs" / "smollm2-alpaca.yaml").read_text())
    chat = load_recipe("qwen3-4b-instruct").model
    content["model"] = {"base": str(tiny_base), "dtype": "float32", "max_seq_length": 384}
    content["sft"]["max_steps"] = content["dpo"]["max_steps"] = 3
    content["evaluate"] |= {"max_new_tokens": 4}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(
        UserError,
        match=r"has no chat template: set model\.chat_template, for example to prompt/chatml\.jinja",
    ):
        prepare(load_recipe(path))
    keys = {"model.chat_template": chat.chat_template}
    with pytest.raises(UserError, match=r"model\.eos_token: .*tiny-base has no token '<end_of_turn>'"):
        prepare(load_recipe(path, overrides=keys | {"model.eos_token": "<end_of_turn>"}))
    recipe = load_recipe(path, overrides=keys | {"model.eos_token": chat.eos_token})

    seen = []

    def looked_at(trainer, tokenizer):
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        seen.extend(tokenizer.decode(row[row != -100]) for row in batch["labels"])
        return original(trainer, tokenizer)

    original = audits.audit_mask
    monkeypatch.setattr(audits, "audit_mask", looked_at)
    assert sft(recipe)["metrics"]["steps"] == 3
    assert all(
        text.endswith("<|im_end|>\n") and text.count("<|im_end|>") == 1 and "<think>" not in text
        for text in seen
    )
    saved = json.loads((recipe.run_dir / "sft" / "adapter" / "tokenizer_config.json").read_text())
    assert saved["eos_token"] == "<|im_end|>"
    existing_pairs(load_recipe())  # samples of a model are not made unasked
    assert not load_recipe().run_dir.exists()
    existing_pairs(recipe)
    made = pairs_stage(recipe).result
    assert made["strategies"] == {"dataset": 60} and made["margin"]["min"] >= 2
    trained = dpo(recipe)
    assert trained["metrics"]["steps"] == 3 and abs(trained["audit"]["loss"] - math.log(2)) < 0.01
    results = evaluate(recipe)
    assert {name: s["n"] for name, s in results.items()} == {"base": 60, "sft": 60, "dpo": 60}

    model, tokenizer = loading.load(recipe)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|im_end|>", 2, 0)
    assert model.generation_config.eos_token_id == [2, 0] and model.config.eos_token_id == 2
    assert stops_after(model, tokenizer, "<|im_end|>") == stops_after(model, tokenizer, "<|endoftext|>") == 3
    adapters.save_merged(adapters.add_lora(model, recipe), tokenizer, tmp_path / "merged")
    from transformers import AutoTokenizer, GenerationConfig

    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [2, 0]
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["eos_token_id"] == 2
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.eos_token == "<|im_end|>"
    assert merged.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    ) == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    packed_rows_do_not_see_each_other(model)
    every_recipe_makes_the_real_configs(tmp_path)


def stops_after(model, tokenizer, end: str) -> int:
    """New tokens of an answer whose third is `end`."""
    from transformers import LogitsProcessor

    class Forced(LogitsProcessor):
        def __call__(self, input_ids, scores):
            wanted = tokenizer.convert_tokens_to_ids(end) if input_ids.shape[1] == 5 else 100
            return scores.fill_(float("-inf")).index_fill_(1, input_ids.new_tensor([wanted]), 0.0)

    given = tokenizer("a b c", return_tensors="pt")
    assert given["input_ids"].shape[1] == 3
    return (
        model.generate(**given, max_new_tokens=9, do_sample=False, logits_processor=[Forced()]).shape[1] - 3
    )


def packed_rows_do_not_see_each_other(model) -> None:
    """TRL packs without an attention mask, with positions that start anew: transformers keeps the rows apart by these."""
    import torch

    first, second = torch.arange(10, 16), torch.arange(30, 37)
    positions = torch.cat([torch.arange(6), torch.arange(7)])
    with torch.inference_mode():
        packed = model(input_ids=torch.cat([first, second])[None], position_ids=positions[None]).logits[0, 6:]
        alone = model(input_ids=second[None]).logits[0]
        together = model(input_ids=torch.cat([first, second])[None]).logits[0, 6:]
    assert torch.allclose(packed, alone, atol=1e-4) and not torch.allclose(together, alone, atol=1e-2)


def every_recipe_makes_the_real_configs(folder) -> None:
    from trl import DPOConfig, SFTConfig

    from tunebook.training import arguments

    for name in sorted(p.stem for p in (ROOT / "configs").glob("*.yaml")):
        recipe = load_recipe(name)
        for section, config in (("sft", SFTConfig), ("dpo", DPOConfig)):
            args, _ = arguments.arguments(config, recipe, section, folder)
            given = getattr(recipe, section)
            assert (
                args.learning_rate == given["learning_rate"]
                and args.max_length == recipe.model.max_seq_length
            )
            assert args.gradient_accumulation_steps == given["gradient_accumulation_steps"]
