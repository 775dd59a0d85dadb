"""Which part of a rendered conversation carries loss, turn by turn, for three families of chat templates."""

from __future__ import annotations

import json

import pytest
from templates import ENDS, FAMILIES

from tunebook.checkers.check import Check
from tunebook.data import prepare, tools
from tunebook.data.checks import RowChecker
from tunebook.data.rows import Row, Unusable
from tunebook.data.tokens import open_tokenizer
from tunebook.models.turns import Conversation, TurnMarks, trained_spans
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe

TURNS = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
    {"role": "user", "content": "Three?"},
    {"role": "assistant", "content": "Third."},
]
TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "tide", "arguments": '{"harbour": "Kiel"}'}}
WITH_TOOLS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Welcome.", "reasoning_content": "A greeting."},
    {"role": "user", "content": "High tide in Kiel?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "7:30"},
    {"role": "assistant", "content": "At 7:30.", "reasoning_content": "The tool says 7:30."},
]


@pytest.fixture
def tokenizer(embedded):
    def with_template(family):
        text = open_tokenizer(load_recipe().model)
        text.chat_template = FAMILIES[family]
        return text

    return with_template


def row_of(messages, tool_list=None):
    chat = tools.conversation({"messages": messages, "tools": tool_list}, lambda turns: turns)
    if chat is None:
        return {"prompt": messages[:-1], "completion": messages[-1:]}
    prompt, completion = tools.as_texts(chat)
    return {"prompt": prompt, "completion": completion, "chat": tools.dumped(chat)}


def trained(row, tokenizer, train_on="all"):
    text = Conversation.of(row).render(tokenizer)
    spans = trained_spans(row, tokenizer, TurnMarks.of(tokenizer), train_on)
    return [text[slice(*span)] for span in spans]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_with_its_end_or_the_last_alone(family, tokenizer):
    end = ENDS[family]
    row = row_of(TURNS)
    assert trained(row, tokenizer(family)) == [f"First.{end}", f"Second.{end}", f"Third.{end}"]
    assert trained(row, tokenizer(family), "last") == [f"Third.{end}"]
    muted = [dict(turn) for turn in TURNS]
    muted[3]["weight"] = 0
    assert trained(row_of(muted), tokenizer(family)) == [f"First.{end}", f"Third.{end}"]
    muted[5]["weight"] = 0
    assert trained(row_of(muted), tokenizer(family), "last") == []


def test_calls_and_reasoning_carry_loss_results_and_definitions_none(tokenizer):
    turns = trained(row_of(WITH_TOOLS, [TOOL]), tokenizer("qwen3"))
    assert turns == [
        "Welcome.<|im_end|>",  # whose reasoning the template drops
        '<tool_call>\n{"name": "tide", "arguments": {"harbour": "Kiel"}}\n</tool_call><|im_end|>',
        "<think>\nThe tool says 7:30.\n</think>\n\nAt 7:30.<|im_end|>",
    ]
    text = Conversation.of(row_of(WITH_TOOLS, [TOOL])).render(tokenizer("qwen3"))
    assert '<tools>\n{"type": "function", "function": {"name": "tide"' in text
    assert "<tool_response>\n7:30\n</tool_response>" in text


def test_a_template_that_drops_a_turn_or_tells_none_apart_is_refused(tokenizer):
    text = tokenizer("chatml")
    with pytest.raises(ValueError, match="the chat template drops 'tide' of an assistant turn"):
        trained(row_of(WITH_TOOLS, [TOOL]), text)
    loop = "{% for m in messages %}"
    text.chat_template = FAMILIES["chatml"].replace(loop, "{% for m in messages[-4:] %}")
    with pytest.raises(ValueError, match="the row has 3 assistant turns, the chat template shows 2"):
        trained(row_of(TURNS), text)
    text.chat_template = FAMILIES["chatml"].replace(loop, "{% for m in messages[-2:] %}")
    with pytest.raises(UserError, match="the chat template drops earlier answers"):
        TurnMarks.of(text)


NO_MARKS = {
    "no header": "{% for m in messages %}{{ m.content }}</s>{% endfor %}",
    "no end": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    # As gpt-oss: the last answer alone ends as answers are to end.
    "another end": "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
}


@pytest.mark.parametrize("template", NO_MARKS)
def test_a_template_that_tells_no_turns_apart_has_no_marks(template, tokenizer):
    text = tokenizer("chatml")
    text.chat_template = NO_MARKS[template]
    with pytest.raises(ValueError, match="turns could be told apart"):
        TurnMarks.of(text)


def test_a_header_may_be_the_end_of_the_question_or_open_reasoning(tokenizer):
    text = tokenizer("chatml")
    text.chat_template = (  # as Mistral's
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    assert trained(row_of(TURNS), text) == ["First.</s>", "Second.</s>", "Third.</s>"]
    # As Qwen3.5's: an answer begins with reasoning, which the template drops from earlier turns.
    text.chat_template = FAMILIES["qwen3"].replace(
        "{% if add_generation_prompt %}<|im_start|>assistant\n",
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n",
    )
    assert text.chat_template != FAMILIES["qwen3"]
    assert trained(row_of(TURNS), text) == ["First.<|im_end|>", "Second.<|im_end|>", "Third.<|im_end|>"]


def test_reasoning_in_an_answers_own_text_may_be_dropped(tokenizer):
    text = tokenizer("chatml")
    text.chat_template = FAMILIES["chatml"].replace(
        "m.content +", "(m.content if loop.last else m.content.split('</think>')[-1]) +"
    )
    turns = [dict(turn) for turn in TURNS]
    for turn in turns[1::2]:
        turn["content"] = f"<think>\nHm.\n</think>{turn['content']}"
    assert trained(row_of(turns), text) == [
        "First.<|im_end|>",
        "Second.<|im_end|>",
        "<think>\nHm.\n</think>Third.<|im_end|>",
    ]
    turns[1]["content"] = turns[1]["content"].replace("Hm.", "Let me see.")
    assert Conversation(turns).drops_reasoning(text)
    assert not Conversation(turns[-2:]).drops_reasoning(text)
    assert not Conversation(TURNS).drops_reasoning(text)


def test_a_call_whose_arguments_are_not_shown_is_refused(tokenizer):
    text = tokenizer("qwen3")
    text.chat_template = text.chat_template.replace("call.function.arguments | tojson", "'{}'")
    with pytest.raises(ValueError, match="drops 'harbour' of an assistant turn"):
        trained(row_of(WITH_TOOLS, [TOOL]), text)


def test_sharegpt_calls_become_the_same_conversation():
    turns = [
        {"from": "human", "value": "High tide in Kiel?"},
        {"from": "function_call", "value": '{"name": "tide", "arguments": {"harbour": "Kiel"}}'},
        {"from": "observation", "value": "7:30"},
        {"from": "gpt", "value": "At 7:30."},
    ]
    chat = tools.conversation({"messages": turns}, lambda messages: messages)
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    call = {"type": "function", "function": {"name": "tide", "arguments": {"harbour": "Kiel"}}}
    assert chat.messages[1]["tool_calls"] == [call] and chat.messages[2]["content"] == "7:30"


def test_what_is_no_conversation_says_why():
    def reason(messages):
        with pytest.raises(Unusable) as error:
            tools.conversation({"messages": messages}, lambda turns: turns)
        return error.value.reason

    mute = {"role": "assistant", "content": "A.", "weight": 0}
    assert reason([{"role": "user", "content": "Q"}, mute]) == "weight 0"
    assert reason([mute, {"role": "user", "content": "Q"}]) == "broken turns"
    assert reason(WITH_TOOLS[:-1]) == "broken turns"
    assert reason([*WITH_TOOLS, {"role": "nobody", "content": "x"}]) == "wrong role"
    assert reason([WITH_TOOLS[0], {"role": "assistant", "tool_calls": [{"function": {}}]}]) == "wrong type"


def test_prepare_keeps_rows_with_tools_where_the_template_shows_them(tmp_path, embedded):
    path = tmp_path / "rows.jsonl"
    rows = []
    for number in range(4):
        messages = [dict(turn) for turn in WITH_TOOLS]
        messages[2] = {"role": "user", "content": f"High tide in harbour {number}?"}
        rows.append({"messages": messages, "tools": [TOOL]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"data.sources": [{"path": str(path), "split": "train"}], "data.max_aside": 1}
    recipe = load_recipe(overrides={**keys, "model.chat_template": "prompt/chatml_tools.jinja"})
    record = prepare.prepare(recipe)
    assert (record["rows"]["train"], record["quarantined"]) == (4, {})
    with pytest.raises(UserError, match=r"4 tools .*does not show the row's tools"):
        prepare.prepare(load_recipe(overrides=keys))
    # No dead end: the rows go aside here too, and with the reason.
    (tmp_path / "no_marks.jinja").write_text("{{ tools }}" + NO_MARKS["no end"])
    with pytest.raises(UserError, match=r"4 tools .*turns could be told apart"):
        prepare.prepare(
            load_recipe(overrides={**keys, "model.chat_template": str(tmp_path / "no_marks.jinja")})
        )


def put_aside(row: dict, tmp_path, tokenizer_model) -> str | None:
    """The reason for which a row of reasoning or tools is put aside."""
    checker = RowChecker(tokenizer_model, tmp_path, check=Check())
    rejected = checker.check(Row("rows:1", "train", **row))
    return rejected.reason if rejected else None


@pytest.mark.parametrize(
    ("answer", "gold", "reason"),
    [
        ("It is \\boxed{12}.", "12", None),
        ("It is \\boxed{13}.", "12", "wrong answer"),
        ("\u200b\u2800", None, "empty completion"),
        ("API call failed after 3 retries", None, "error text"),
        ("None", None, "error text"),
        ("#N/A", None, "error text"),
    ],
)
def test_an_answer_with_reasoning_is_checked_as_any_other(answer, gold, reason, tmp_path, embedded):
    turns = [
        {"role": "user", "content": "What is 3 times 4?"},
        {"role": "assistant", "content": answer, "weight": 1},
        {"role": "user", "content": "Again?"},
        {"role": "assistant", "content": answer, "reasoning_content": "Three fours."},
    ]
    model = load_recipe(overrides={"model.chat_template": "prompt/chatml_tools.jinja"}).model
    assert put_aside(row_of(turns) | {"gold": gold}, tmp_path, model) == reason


def test_a_control_token_in_reasoning_or_in_a_tools_description_is_found(tmp_path, embedded):
    model = load_recipe(overrides={"model.chat_template": "prompt/chatml_tools.jinja"}).model
    assert put_aside(row_of(WITH_TOOLS, [TOOL]), tmp_path, model) is None
    marked = json.loads(json.dumps(TOOL))
    marked["function"]["description"] = "Ends <|im_end|> here."
    assert put_aside(row_of(WITH_TOOLS, [marked]), tmp_path, model) == "control token in the text"
    thought = [dict(turn) for turn in WITH_TOOLS]
    thought[5]["reasoning_content"] = "So <|im_start|>user it is."
    assert put_aside(row_of(thought, [TOOL]), tmp_path, model) == "control token in the text"
