"""Token by token: what TRL is given to train on, padded, packed and padding-free; and what is learnt."""

from __future__ import annotations

import json

import pytest
import yaml
from templates import ENDS, FAMILIES

from tunebook.models.turns import NO_LOSS, TurnMarks, labelled
from tunebook.recipe.loading import load_recipe

TURNS = [
    {"role": "user", "content": "One, please?"},
    {"role": "assistant", "content": "The first."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "The second one."},
]


def row(number=0):
    turns = [dict(turn) for turn in TURNS]
    turns[0]["content"] += f" {number}" * (1 + number)
    return {"prompt": turns[:-1], "completion": turns[-1:], "source_id": f"r:{number}"}


@pytest.fixture
def tokenizer(embedded):
    from transformers import AutoTokenizer

    def with_template(family):
        text = AutoTokenizer.from_pretrained(embedded)
        text.chat_template = FAMILIES[family]
        # As in a model of that family: no token goes over the end of a turn.
        text.add_tokens(["<|begin|>", "<|header|>", "<|/header|>", "<|eot|>"], special_tokens=True)
        return text

    return with_template


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_token_by_token(family, tokenizer):
    text = tokenizer(family)
    made = labelled(row(), text, TurnMarks.of(text), "all")
    rendered = text.apply_chat_template([*row()["prompt"], *row()["completion"]], tokenize=False)
    assert made["input_ids"] == text(rendered, add_special_tokens=False)["input_ids"]
    # By hand: the text in pieces, without and with loss by turns.
    end = ENDS[family]
    first, second = f"The first.{end}", f"The second one.{end}"
    before, rest = rendered.split(first)
    between, after = rest.split(second)
    expected = [(before, False), (first, True), (between, False), (second, True), (after, False)]
    runs = []
    for token, label in zip(made["input_ids"], made["labels"], strict=True):
        assert label in (token, NO_LOSS)
        is_trained = label == token
        if not runs or runs[-1][1] != is_trained:
            runs.append(([], is_trained))
        runs[-1][0].append(token)
    assert [(text.decode(tokens), is_trained) for tokens, is_trained in runs] == [
        piece for piece in expected if piece[0]
    ]


WAYS = {
    "padded": {},
    "packed": {"packing": True, "max_length": 512},
    "padding-free": {"padding_free": True, "max_length": None},  # TRL refuses a length that nothing enforces
}


TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"harbour": "Kiel"}}}


def with_tools(number):
    """A row of a question, a call, its result and the answer, after an answer whose reasoning is dropped."""
    messages = [
        *row(number)["prompt"][:1],
        {"role": "assistant", "content": "Hello.", "reasoning_content": "A greeting."},
        {"role": "user", "content": "High tide?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "7:30"},
        {"role": "assistant", "content": "At 7:30.", "reasoning_content": "It says so."},
    ]
    return row(number) | {"chat": json.dumps({"messages": messages, "tools": [TOOL]})}


EXPECTED = {
    "chatml": ["The first.<|im_end|>", "The second one.<|im_end|>"],
    "llama3": ["The first.<|eot|>", "The second one.<|eot|>"],
    "qwen3": [
        "Hello.<|im_end|>",
        '<tool_call>\n{"name": "tide", "arguments": {"harbour": "Kiel"}}\n</tool_call><|im_end|>',
        "<think>\nIt says so.\n</think>\n\nAt 7:30.<|im_end|>",
    ],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_trl_trains_on_the_same_tokens_however_it_batches_them(way, family, tiny, tmp_path, tokenizer):
    from tunebook.models import backend

    backend.backend()
    import datasets
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from tunebook.training.masks import masked_splits

    text = tokenizer(family)
    make = with_tools if family == "qwen3" else row
    plain = datasets.Dataset.from_list([make(number) for number in range(5)])
    rows = masked_splits({"train": plain}, text, None)["train"]
    args = SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    # Unsloth turns packing and padding-free off on a CPU: TRL's own trainer below its class, and set late.
    vars(args).update(WAYS[way])
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.resize_token_embeddings(len(text))
    trainer = SFTTrainer.__base__(model, args, processing_class=text, train_dataset=rows)
    assert (len(trainer.train_dataset) < 5) == (way == "packed")
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    assert ("position_ids" in batch) == (way != "padded")
    ids, labels = batch["input_ids"].flatten().tolist(), batch["labels"].flatten().tolist()
    pieces, before = [], NO_LOSS
    for token, label in zip(ids, labels, strict=True):
        if label == NO_LOSS:
            before = label
            continue
        assert label == token
        if before == NO_LOSS:
            pieces.append([])
        pieces[-1].append(token)
        before = label
    assert sorted(map(text.decode, pieces)) == sorted(EXPECTED[family] * 5)


def test_a_fact_of_the_second_answer_is_learnt_with_all_and_not_with_last(tiny, tmp_path):
    from tunebook.evaluation.held_out import answer_loss
    from tunebook.generation.local import local
    from tunebook.models.adapters import load_stages
    from tunebook.training.sft import sft

    lines = []
    for number in range(16):
        turns = [
            {"role": "user", "content": f"Hello {number}"},
            {"role": "assistant", "content": "Welcome."},
            {"role": "user", "content": "What is the code of the door?"},
            {"role": "assistant", "content": "It is 7391."},
            {"role": "user", "content": f"And breakfast {number}?"},
            {"role": "assistant", "content": "Upstairs."},
        ]
        lines.append(json.dumps({"messages": turns}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    content = {
        "extends": "smollm2",
        "model": {"base": str(tiny), "dtype": "float32"},
        "data": {"sources": [{"path": "rows.jsonl", "split": "train"}], "duplicates": "none"},
        "sft": {"max_steps": 60, "learning_rate": 2e-2, "eval_strategy": "no", "logging_steps": 10},
    }
    (tmp_path / "canary.yaml").write_text(yaml.safe_dump(content))
    asked = [{"role": "user", "content": "Hello 3"}, {"role": "assistant", "content": "Welcome."}]
    asked.append({"role": "user", "content": "What is the code of the door?"})
    fact = [{"role": "assistant", "content": "It is 7391."}]
    losses = {}
    for train_on in ("all", "last"):
        recipe = load_recipe(tmp_path / "canary.yaml", run=train_on, overrides={"data.train_on": train_on})
        sft(recipe)
        model, tokenizer = load_stages(recipe, ["sft"])
        with local(model, tokenizer, "sft") as source:
            nats, tokens = answer_loss(source, asked, fact, [])
        losses[train_on] = nats / tokens
    # The tiny model's random head cannot become surer than about 5 nats a token; untaught it has some 10.
    assert losses["all"] < 6.5 and losses["last"] > 9, losses
