"""The forms in which people and hubs have rows and preference pairs, each recognised by its columns."""

from __future__ import annotations

import base64
import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from tunebook.data import sources
from tunebook.data.fields import as_text, images_in, messages_of
from tunebook.data.rows import Reject, Unusable
from tunebook.pairs import existing
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe

PLAIN = {"data.system_prompt": None, "data.user_prompt": None}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def write(folder, rows) -> str:
    path = Path(folder) / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows_of(folder, rows, **source) -> list:
    """The rows of a source, read."""
    given = {"path": write(folder, rows), "split": "train", **source}
    recipe = load_recipe(overrides={"data.sources": [given], **PLAIN})
    return list(sources.read(recipe, recipe.run_dir / "images"))


def read(folder, rows, **source) -> list:
    """Of each row the conversation, and its gold answer where it has one; or the reason and detail."""
    found = []
    for item in rows_of(folder, rows, **source):
        if isinstance(item, Reject):
            found.append((item.reason, item.detail))
        else:
            turns = item.prompt + item.completion
            found.append((turns, item.gold) if item.gold else turns)
    return found


def one(folder, row, **source):
    (found,) = read(folder, [row], **source)
    return found


# Rows for SFT


def test_rows_without_a_format_are_read_by_their_columns(tmp_path, capsys):
    question_answer = [user("Q"), assistant("A")]
    cases = [
        ({"messages": [user("Q"), assistant("A")]}, "chat"),
        ({"prompt": "Q", "completion": "A"}, "chat"),
        ({"prompt": [user("Q")], "completion": [assistant("A")]}, "chat"),
        ({"prompt": [user("Q")], "completion": assistant("A")}, "chat"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "sharegpt"),
        ({"conversation": [user("Q"), assistant("A")], "model": "x"}, "sharegpt"),
        ({"instruction": "Q", "input": "", "output": "A"}, "alpaca"),
        ({"question": "Q", "answer": "A"}, "question_answer"),
        ({"prompt": "Q", "response": "A"}, "question_answer"),
        ({"instruction": "Q", "context": "", "response": "A", "category": "open_qa"}, "question_answer"),
        ({"query": "Q", "response": "A", "original_question": "?", "type": "GSM_SV"}, "question_answer"),
        ({"id": 1, "input": "Q", "output": "A"}, "question_answer"),
        ({"user": "Q", "assistant": "A"}, "question_answer"),
        ({"text": "### Human: Q### Assistant: A"}, "text"),
        ({"problem": "Q", "solution": "A", "level": "Level 5", "type": "Algebra"}, "maths"),
        (
            {"source": "olympiads", "problem": "Q", "solution": "A", "messages": [user("Q"), assistant("A")]},
            "maths",
        ),
    ]
    for row, name in cases:
        assert one(tmp_path, row) == question_answer, row
        assert f"read as {name}, by the columns" in capsys.readouterr().out, row
    # Row by row, and each form is said once.
    mixed = [row for row, _ in cases]
    assert read(tmp_path, [*mixed, *mixed]) == [question_answer] * 2 * len(mixed)
    assert capsys.readouterr().out.count("read as alpaca") == 1


def test_a_template_in_a_text_is_taken_off(tmp_path):
    two = [user("Q"), assistant("A"), user("Q2"), assistant("A2")]
    chatml = "<|im_start|>{}\n{}<|im_end|>\n"
    turns = [("user", "Q"), ("assistant", "A"), ("user", "Q2"), ("assistant", "A2")]
    llama3 = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
    gemma = "<start_of_turn>{}\n{}<end_of_turn>\n"
    texts = [
        "".join(chatml.format(*turn) for turn in turns),
        "<|begin_of_text|>" + "".join(llama3.format(*turn) for turn in turns),
        "<bos>" + "".join(gemma.format(who.replace("assistant", "model"), said) for who, said in turns),
        "<|user|>\nQ</s>\n<|assistant|>\nA</s>\n<|user|>\nQ2</s>\n<|assistant|>\nA2</s>",
        "".join(f"<|{who}|>\n{said}<|end|>\n" for who, said in turns) + "<|endoftext|>",
        "<s>[INST] Q [/INST] A </s><s>[INST] Q2 [/INST] A2 </s>",
        "### Human: Q### Assistant: A### Human: Q2### Assistant: A2",
    ]
    for text in texts:
        assert one(tmp_path, {"text": text, "source": "x"}) == two, text
    system_first = [system("S"), user("Q"), assistant("A")]
    for text in (
        chatml.format("system", "S") + chatml.format("user", "Q") + chatml.format("assistant", "A"),
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s>",
        "S\n### Human: Q\n### Assistant: A",
    ):
        assert one(tmp_path, {"text": text}) == system_first, text
        # The text's own system turn is nearer to it than a column beside it.
        assert one(tmp_path, {"text": text, "system": "column"}) == system_first, text
    assert one(tmp_path, {"text": texts[0], "system": "S"}) == [system("S"), *two]
    alpaca = (
        "Below is an instruction that describes a task.\n\n"
        "### Instruction:\nQ\n\n### Input:\n{}\n\n### Response:\nA"
    )
    assert one(tmp_path, {"text": alpaca.format("I")}) == [user("Q\n\nI"), assistant("A")]
    assert one(tmp_path, {"text": alpaca.format("")}) == [user("Q"), assistant("A")]
    # A text is kept whole, signs of other templates and of Markdown too.
    odd = chatml.format("user", "### Human: [INST] </s> x") + chatml.format(
        "assistant", "1 < 2\n\n### Title\n"
    )
    assert one(tmp_path, {"text": odd}) == [user("### Human: [INST] </s> x"), assistant("1 < 2\n\n### Title")]
    # What ends with a question, or has an unknown speaker, is put aside and not cut.
    ends = "".join(chatml.format(*turn) for turn in turns[:3])
    assert one(tmp_path, {"text": ends})[0] == "broken turns"
    strange = "".join(chatml.format(*turn) for turn in [*turns, ("judge", "9")])
    assert one(tmp_path, {"text": strange}) == ("wrong role", "text: 'judge' is no role")
    # Plain prose has no question.
    assert one(tmp_path, {"text": "Once upon a time."})[0] == "no prompt"


def test_answers_to_check_against(tmp_path):
    gsm8k = {"question": "2*3?", "answer": "It is <<2*3=6>>6.\n#### 6"}
    assert one(tmp_path, gsm8k) == ([user("2*3?"), assistant("It is 6.\n\\boxed{6}")], "6")
    # A heading of prose is no result of GSM8K.
    prose = {"question": "How?", "answer": "#### Steps\nFirst this, then that."}
    assert one(tmp_path, prose) == [user("How?"), assistant("#### Steps\nFirst this, then that.")]
    checked = {"prompt": "Bigger, A or B?", "completion": "It is B.", "answer": "B"}
    assert one(tmp_path, checked) == ([user("Bigger, A or B?"), assistant("It is B.")], "B")
    numina = {"problem": "P", "solution": "S", "answer": "42", "problem_type": "Algebra"}
    assert one(tmp_path, numina) == ([user("P"), assistant("S")], "42")
    for no_answer in ("proof", "notfound", None):
        assert one(tmp_path, numina | {"answer": no_answer}) == [user("P"), assistant("S")]
    # `messages` that say something else than the problem are the conversation.
    other = {"problem": "P", "solution": "S", "messages": [user("Hi"), assistant("Hello")]}
    assert one(tmp_path, other) == [user("Hi"), assistant("Hello")]


def test_a_column_is_read_for_one_thing_alone(tmp_path):
    rows = [{"question": "How far?", "answer": "A mile or so."}, {"question": "6 * 7?", "answer": "42"}]
    as_prose = [[user("How far?"), assistant("A mile or so.")], [user("6 * 7?"), assistant("42")]]
    columns = {"prompt": "question", "completion": "answer"}
    assert read(tmp_path, rows, format="chat", columns=columns) == as_prose
    assert read(tmp_path, rows, columns=columns) == as_prose
    assert read(tmp_path, rows) == as_prose
    # One column may still be named for two things, two may change places, and one may be sent away.
    row = {"question": "6 * 7?", "text": "42", "answer": "no answer at all", "gold": "41"}
    twice = {"prompt": "question", "completion": "text", "answer": "text"}
    assert one(tmp_path, row, columns=twice) == ([user("6 * 7?"), assistant("42")], "42")
    swapped = {"prompt": "completion", "completion": "prompt"}
    assert one(tmp_path, {"prompt": "A", "completion": "Q"}, columns=swapped) == [user("Q"), assistant("A")]
    away = {"prompt": "question", "completion": "text", "answer": "none"}
    assert one(tmp_path, row, columns=away) == [user("6 * 7?"), assistant("42")]


def test_columns_are_known_in_upper_case_too(tmp_path, pairs_of):
    row = {"System": "Be brief.", "Question": "Sort", "Context": "3, 1", "Answer": "1, 3"}
    assert one(tmp_path, row) == [system("Be brief."), user("Sort\n\n3, 1"), assistant("1, 3")]
    assert one(tmp_path, {"Prompt": "Q", "COMPLETION": "A"}, format="chat") == [user("Q"), assistant("A")]
    assert one(tmp_path, {"Prompt": "Q", "Completion": None}) == ("empty cell", "completion: empty")
    # Names in `columns` are those of the file, and no column takes the place of another.
    renamed = one(tmp_path, row, columns={"prompt": "Question", "completion": "Answer"})
    assert renamed == [system("Be brief."), user("Sort\n\n3, 1"), assistant("1, 3")]
    both = {"question": "Q", "answer": "A", "Answer": "other"}
    assert one(tmp_path, both) == [user("Q"), assistant("A")]
    assert "no known form has the columns Frage, Wert" in one(tmp_path, {"Frage": "Q", "Wert": "A"})[1]
    labelled = [{"Prompt": ASKED, "Completion": text, "Label": text == GOOD} for text in (GOOD, BAD)]
    assert pairs_of([{"Prompt": ASKED, "Chosen": GOOD, "Rejected": BAD}, *labelled]) == [PAIR, PAIR]


def test_numbers_are_their_text_and_lists_are_not(tmp_path):
    def outputs(value):
        return one(tmp_path, {"instruction": "Q", "input": "", "output": value}, format="alpaca")

    for value, text in ((2, "2"), (0, "0"), (2.5, "2.5"), (-1, "-1"), (True, "true")):
        assert outputs(value) == [user("Q"), assistant(text)]
    assert outputs(["a", "b"]) == ("wrong type", "output is a list, write it as text")
    assert outputs({"a": 1}) == ("wrong type", "output is an object, write it as text")
    assert outputs(float("nan")) == ("empty cell", "output: empty")
    assert as_text(date(2024, 1, 2), "x") == "2024-01-02" and as_text(Decimal("12.50"), "x") == "12.50"
    even = {"instruction": "Is it even?", "input": 0, "output": "yes"}
    assert one(tmp_path, even) == [user("Is it even?\n\n0"), assistant("yes")]
    chat = {"prompt": "Q", "completion": ["a", "b"]}
    assert one(tmp_path, chat) == ("wrong type", "completion is a list, write it as text")
    assert one(tmp_path, {"prompt": 7, "completion": 8}) == [user("7"), assistant("8")]


def test_pandas_nan_is_an_empty_cell_wherever_it_stands(tmp_path, pairs_of):
    nan = float("nan")
    empty = {"instruction": "Q", "input": nan, "system": nan, "history": nan, "image": nan, "output": "A"}
    assert one(tmp_path, empty) == [user("Q"), assistant("A")]
    bare = {"tool_calls": nan, "reasoning_content": nan, "weight": nan}
    messages = [user("Q") | bare, assistant("A", **bare)]
    assert one(tmp_path, {"messages": messages}) == [user("Q"), assistant("A")]
    unscored = {"chosen": GOOD, "rejected": BAD, "score_chosen": nan, "score_rejected": nan}
    assert pairs_of([{"prompt": ASKED, "system": nan, **unscored}]) == [PAIR]


def test_the_advice_fits_the_error(tmp_path):
    def chat(*messages):
        return one(tmp_path, {"messages": list(messages)})

    wrong_type = chat(user("Q"), assistant({"text": "A"}))
    assert wrong_type == ("wrong type", "messages[1].content is an object, write it as text")
    assert chat("Q") == ("wrong type", "messages[0]: not a message with role and content")
    role, detail = chat(user("Q"), {"role": "critic", "content": "A"})
    assert role == "wrong role" and detail.startswith(
        "messages[1].role: 'critic' is none of system, developer"
    )
    ends = ("broken turns", "the conversation ends with the user's message")
    assert chat(user("Q"), assistant("A"), user("Thanks")) == ends
    assert chat(user("Q")) == ends
    assert chat(assistant("A")) == ("broken turns", "prompt: must end with a user message")
    # A missing column: what the row has, and what to write; never what is written already.
    row = {"instruct": "Q", "reply": "A"}
    assert one(tmp_path, row, format="chat") == (
        "missing column",
        "prompt: missing; the row has instruct, reply: name it in `columns`, as in {prompt: instruct}",
    )
    assert one(tmp_path, row, format="chat", columns={"prompt": "instruct"}) == (
        "missing column",
        "completion: missing; the row has instruct, reply: name it in `columns`, "
        "as in {prompt: instruct, completion: reply}",
    )
    assert one(tmp_path, row, format="chat", columns={"prompt": "instruct", "completion": "answer"}) == (
        "missing column",
        "completion: missing; `columns` takes it from 'answer', but the row has instruct, reply",
    )
    # No form at all: what was seen, and two ways out.
    reason, detail = one(tmp_path, row)
    assert reason == "unknown columns"
    assert "the columns instruct, reply" in detail and "{prompt: instruct, completion: reply}" in detail
    assert "or set `format` to one of" in detail
    assert one(tmp_path, {"text": "Once upon a time."})[0] == "no prompt"
    reason, detail = one(tmp_path, {"prompt": "Q", "chosen": "A", "rejected": "B"})
    assert reason == "unknown columns" and "name it in pairs.dataset" in detail
    labelled = {"prompt": "Q", "completion": "A", "label": False}
    assert one(tmp_path, labelled)[0] == "labelled false"
    assert one(tmp_path, labelled | {"label": "False"})[0] == "labelled false"
    assert one(tmp_path, labelled | {"label": True}) == [user("Q"), assistant("A")]
    with pytest.raises(UserError, match=r"data\.sources\.0\.format: should be one of .*did you mean alpaca"):
        one(tmp_path, row, format="alpacca")


def test_what_changes_a_rows_meaning_is_honoured_or_named(tmp_path):
    earlier = [
        user("Be funny."),
        assistant("Ha.", weight=0),
        user("Be serious."),
        assistant("Yes.", weight=1),
    ]
    context = [user("Be funny."), assistant("Ha."), user("Be serious."), assistant("Yes.")]
    assert one(tmp_path, {"messages": earlier}) == context
    reason, detail = one(tmp_path, {"messages": [user("Q"), assistant("A", weight=0)]})
    assert (reason, detail) == ("weight 0", "messages[1]: the answer has weight 0, which carries no loss")
    history = [["Hi", "Hello"], ["How are you?", "Well."]]
    alpaca = {
        "system": "Be brief.",
        "instruction": "Sort",
        "input": "3, 1",
        "output": "1, 3",
        "history": history,
    }
    assert one(tmp_path, alpaca) == [
        system("Be brief."),
        user("Hi"),
        assistant("Hello"),
        user("How are you?"),
        assistant("Well."),
        user("Sort\n\n3, 1"),
        assistant("1, 3"),
    ]
    for none in ([], None, "[]"):
        assert one(tmp_path, alpaca | {"history": none})[1:] == [user("Sort\n\n3, 1"), assistant("1, 3")]
    assert one(tmp_path, alpaca | {"history": "Hi"})[0] == "wrong type"
    mapped = one(tmp_path, alpaca, format="chat", columns={"prompt": "instruction", "completion": "output"})
    assert mapped[-2:] == [user("Sort\n\n3, 1"), assistant("1, 3")] and len(mapped) == 7
    dolly = {"instruction": "Who?", "context": "Ann has won.", "response": "Ann."}
    assert one(tmp_path, dolly) == [user("Who?\n\nAnn has won."), assistant("Ann.")]
    orca = {"system_prompt": "Be exact.", "question": "Q", "response": "A"}
    assert one(tmp_path, orca) == [system("Be exact."), user("Q"), assistant("A")]


@pytest.mark.parametrize(
    ("asks", "answers"), [("Human", "GPT"), ("USER", "Assistant"), ("human", "ai"), ("prompter", "assistant")]
)
def test_roles_are_known_by_any_of_their_names(tmp_path, asks, answers):
    turns = [{"from": "System", "value": "S"}, {"from": asks, "value": "Q"}, {"from": answers, "value": "A"}]
    assert one(tmp_path, {"conversations": turns}) == [system("S"), user("Q"), assistant("A")]
    messages = [{"role": turn["from"], "content": turn["value"]} for turn in turns]
    (row,) = rows_of(tmp_path, [{"messages": messages, "tools": [{"name": "tide"}]}])
    assert json.loads(row.chat)["messages"] == [system("S"), user("Q"), assistant("A")]


def test_a_call_is_kept_however_it_is_written(tmp_path):
    function = {"name": "tide", "arguments": {"port": "Cebu"}}
    result = {"role": "function", "name": "tide", "content": "14:05"}
    for call in (
        {"function_call": {"name": "tide", "arguments": '{"port": "Cebu"}'}},  # OpenAI's older form
        {"tool_calls": json.dumps([{"function": function}])},
        {"tool_calls": {"function": function}},
    ):
        for content in (None, "Let me look."):
            turns = [user("When?"), assistant(content, **call), result, assistant("At 14:05.")]
            for messages in (turns, turns[:2]):
                (row,) = rows_of(tmp_path, [{"messages": messages, "functions": [{"name": "tide"}]}])
                called = {"type": "function", "function": function}
                kept = json.loads(row.chat)["messages"][1]
                assert kept == assistant(content or "", tool_calls=[called])


def test_rows_with_tools_or_reasoning_keep_their_whole_conversation(tmp_path):
    call = {"type": "function", "function": {"name": "tide", "arguments": "{}"}}
    as_object = {"type": "function", "function": {"name": "tide", "arguments": {}}}
    turns = [
        user("When is high tide?"),
        assistant(None, tool_calls=[call]),
        {"role": "tool", "content": "14:05"},
        assistant("At 14:05."),
    ]
    plain = [user("Q"), assistant("A")]
    rows = [
        {"messages": turns},
        {"messages": plain, "tools": [call]},
        {"messages": plain, "tools": json.dumps([call])},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "tools": [call]},
        {"messages": [user("Q"), assistant("A", reasoning_content="Well...")]},
    ]
    kept = [json.loads(row.chat) for row in rows_of(tmp_path, rows)]
    assert [message["role"] for message in kept[0]["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert kept[0]["messages"][1]["tool_calls"] == [as_object] and kept[0]["tools"] is None
    assert [chat["tools"] for chat in kept[1:4]] == [[call]] * 3
    assert all(chat["messages"] == plain for chat in kept[1:4])
    assert kept[4]["messages"][1] == assistant("A", reasoning_content="Well...")
    # A result without a call, and a call without what it is of.
    assert one(tmp_path, {"messages": [turns[0], *turns[2:]]})[0] == "broken turns"
    human = {"from": "human", "value": "Q"}
    assert (
        one(tmp_path, {"conversations": [human, {"from": "function_call", "value": "{}"}]})[0] == "wrong type"
    )
    for none in ([], "[]", "", None, "a hammer and a saw"):
        (row,) = rows_of(tmp_path, [{"messages": plain, "tools": none, "parallel_tool_calls": True}])
        assert row.prompt + row.completion == plain and not row.chat
    (row,) = rows_of(tmp_path, [{"messages": [user("Q"), assistant("A", reasoning_content=None)]}])
    assert not row.chat


def test_openai_messages(tmp_path, monkeypatch):
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "2 + 2?"}]
    answer = assistant([{"type": "text", "text": "4"}])
    developer = {"role": "developer", "content": "Be brief."}
    row = {"messages": [developer, user(parts), answer]}
    conversation = [system("Be brief."), user("What is\n2 + 2?"), assistant("4")]
    assert one(tmp_path, row) == conversation
    # As CSV and Parquet files have them: JSON in a text.
    assert one(tmp_path, {"messages": json.dumps(row["messages"])}) == conversation
    reason, detail = one(tmp_path, {"messages": [user([{"type": "input_audio"}]), answer]})
    assert (reason, detail) == (
        "wrong type",
        "messages[0].content[0]: 'input_audio' is not read, only text and images are",
    )
    # Images in parts are those of a column `images`.
    named = []
    monkeypatch.setattr(sources.images, "of_row", lambda raw, find: named.append(raw.get("images")) or [])
    data = base64.b64encode(b"pixels").decode()
    for url, image in (("a.png", "a.png"), (f"data:image/png;base64,{data}", {"bytes": b"pixels"})):
        picture = {"type": "image_url", "image_url": {"url": url}}
        assert one(tmp_path, {"messages": [user([picture, *parts]), answer]}) == conversation[1:]
        assert named.pop() == [image]
    web = {"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}
    reason, detail = one(tmp_path, {"messages": [user([web, *parts]), answer]})
    assert reason == "image" and "images are not fetched" in detail
    late = {"type": "image", "image": "b.png"}
    reason, detail = one(tmp_path, {"messages": [user("Hi"), assistant("Hello"), user([late]), answer]})
    assert reason == "image" and "put them into the first" in detail


# Preference pairs


@pytest.fixture
def pairs_of(tmp_path, monkeypatch, embedded):
    monkeypatch.setattr(existing, "load", lambda recipe, split: [])

    def read_pairs(rows, **config) -> list:
        """Of each pair the prompt, both answers and the margin; or the reason and detail of a reject."""
        keys = {f"pairs.{name}": value for name, value in config.items()}
        given = {"pairs.methods": ["dataset"], "pairs.dataset": write(tmp_path, rows), **keys, **PLAIN}
        recipe = load_recipe(overrides=given)
        found = []
        for item in existing.read(recipe, len, tmp_path / "images"):
            if isinstance(item, Reject):
                found.append((item.reason, item.detail))
            else:
                sides = [item[side][0]["content"] for side in ("chosen", "rejected")]
                found.append((item["prompt"], *sides, item["margin"]))
        return found

    return read_pairs


GOOD, BAD = "It goes round the Sun.", "It is made of cheese."
ASKED = "What does the Earth do?"
PAIR = ([user(ASKED)], GOOD, BAD, None)


def test_preference_sets_are_recognised_by_their_columns(pairs_of, capsys):
    sides = {"chosen": GOOD, "rejected": BAD}
    turns = {"chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD}}
    whole = {"chosen": [user(ASKED), assistant(GOOD)], "rejected": [user(ASKED), assistant(BAD)]}
    openai = {
        "input": {"messages": [user(ASKED)], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [assistant(GOOD)],
        "non_preferred_output": [assistant(BAD)],
    }
    rows = [
        {"prompt": ASKED, **sides},
        {"prompt": [user(ASKED)], "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]},
        {"prompt": ASKED, "chosen": assistant(GOOD), "rejected": assistant(BAD)},
        whole,
        {"prompt": ASKED, **whole, "messages": whole["chosen"]},
        {"prompt": [user(ASKED)], **whole},
        {"prompt": ASKED, "chosen": f"{ASKED} {GOOD}", "rejected": f"{ASKED}\n{BAD}"},
        {"chosen": f"{ASKED} {GOOD}", "rejected": f"{ASKED} {BAD}"},
        {"chosen": f"{ASKED}\n{GOOD}", "rejected": f"{ASKED}\n{BAD}"},
        openai,
        {"conversations": [{"from": "human", "value": ASKED}], **turns},
        {"instruction": ASKED, "input": "", **sides},
        {"system": "", "question": ASKED, **sides},
        {"input": ASKED, **sides, "status": "swapped"},
        {"messages": whole["chosen"], "rejected_response": BAD},
        {"query": ASKED, "response": GOOD, "rejected_response": BAD},
        {
            "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {GOOD}",
            "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {BAD}",
        },
        {"prompt": f"\n\nHuman: {ASKED}\n\nAssistant:", **sides},
    ]
    assert pairs_of(rows) == [PAIR] * len(rows)
    printed = capsys.readouterr().out
    assert printed.count("pairs of the form OpenAI's, by the columns input, preferred_output") == 1


def test_earlier_turns_inputs_and_system_messages_stay_in_the_prompt(pairs_of):
    sides = {"chosen": GOOD, "rejected": BAD}
    talk = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: {}\n\nAssistant: {}"
    hh = {"chosen": talk.format(ASKED, GOOD), "rejected": talk.format(ASKED, BAD)}
    alpaca = {"instruction": "Answer.", "input": ASKED, "history": [["Hi", "Hello!"]], **sides}
    mapped = {"system": "Be exact.", "question": ASKED, **sides}
    apart = {
        "prompt": [system("Be exact."), user(ASKED)],
        "chosen": [user(ASKED), assistant(GOOD)],
        "rejected": [user(ASKED), assistant(BAD)],
    }
    before = [user("Hi"), assistant("Hello!")]
    assert [pair[0] for pair in pairs_of([hh, alpaca, mapped, apart])] == [
        [*before, user(ASKED)],
        [*before, user(f"Answer.\n\n{ASKED}")],
        [system("Be exact."), user(ASKED)],
        [system("Be exact."), user(ASKED)],
    ]
    assert pairs_of([alpaca], columns={"prompt": "instruction"})[0][0][-1] == user(f"Answer.\n\n{ASKED}")
    # `input` may be the prompt itself.
    assert pairs_of([{"input": ASKED, **sides}], columns={"prompt": "input"}) == [PAIR]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hi", "Hi! How can I help?", "Hi there."),
        ("Good morning", "Good morning to you, Ann.", "Good morning is over."),
        ("Count on from 2", "Count on from 2: 3, 4", "Count on from 2: 4, 5"),
        ("2", "21", "22"),
    ],
)
def test_an_answer_may_begin_with_the_words_of_its_prompt(pairs_of, prompt, chosen, rejected):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    assert pairs_of([row]) == [([user(prompt)], chosen, rejected, None)]


def test_the_common_beginning_ends_where_a_sentence_does(pairs_of):
    def prompt(chosen, rejected):
        (found,) = pairs_of([{"chosen": chosen, "rejected": rejected}])
        return (found[0][0]["content"], *found[1:3]) if len(found) > 2 else found

    assert prompt("Name one. The Po.", "Name one. The Nile.") == ("Name one.", "The Po.", "The Nile.")
    assert prompt("Pi is 3.1", "Pi is 3.2") == ("Pi is", "3.1", "3.2")
    assert prompt("Translate: bonjour", "Translate: baguette") == ("Translate:", "bonjour", "baguette")
    assert prompt("首都はどこ？東京です。", "首都はどこ？東北です。") == (
        "首都はどこ？",
        "東京です。",
        "東北です。",
    )
    assert prompt("Yes.", "No.") == (
        "no prompt",
        "chosen and rejected begin with nothing in common, a prompt is missing",
    )


def test_scored_answers_give_the_best_and_the_worst_and_ties_none(pairs_of):
    def ultrafeedback(*scores):
        answers = zip((GOOD, "It shines.", BAD), scores, strict=False)
        completions = [{"model": "m", "response": text, "overall_score": score} for text, score in answers]
        return {"source": "x", "instruction": ASKED, "models": ["m"], "completions": completions}

    def generated(*ratings):
        return {"instruction": ASKED, "generations": [GOOD, BAD], "ratings": list(ratings)}

    sides = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}
    found = pairs_of(
        [
            ultrafeedback(8.0, 5.0, 3.0),
            ultrafeedback(7.0, 7.0, 7.0),
            ultrafeedback(7.0, None, None),
            generated(5, 1.5),
            generated(4.0, 4.0),
            {**sides, "chosen-rating": 5.0, "rejected-rating": 4.5},
            {**sides, "rating_chosen": 5, "rating_rejected": 4},
            {**sides, "status": "tie"},
            {**sides, "rating": [9.0, 9.0], "status": "unchanged"},
            {**sides, "rating": [9.0, 7.0], "status": "unchanged"},
        ]
    )
    assert [item if len(item) == 2 else item[1:] for item in found] == [
        (GOOD, BAD, 5.0),
        ("tie", "all 3 answers are scored 7"),
        ("no scores", "1 of 3 answers have a score, two are needed"),
        (GOOD, BAD, 3.5),
        ("tie", "all 2 answers are scored 4"),
        (GOOD, BAD, 0.5),
        (GOOD, BAD, 1.0),
        ("tie", "status: tie"),
        ("tie", "rating [9.0, 9.0]"),
        (GOOD, BAD, None),
    ]


def test_labels_are_paired_by_prompt_and_the_rest_is_counted(pairs_of, capsys):
    def row(prompt, completion, label):
        return {"prompt": prompt, "completion": completion, "label": label}

    found = pairs_of(
        [
            row(ASKED, BAD, False),
            row("Alone?", "Yes.", True),
            row(ASKED, GOOD, "true"),
            row(ASKED, "It shines.", 1),
            row(ASKED, "No idea.", "maybe"),
            {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
        ]
    )
    assert found == [
        ("wrong type", "label: maybe is neither true nor false"),
        PAIR,
        PAIR,
        ("no counterpart", "no further row answers this prompt with label false"),
        ("no counterpart", "no further row answers this prompt with label false"),
    ]
    assert "2 of 4 rows with a label make 1 pairs" in capsys.readouterr().out


def test_pairs_that_cannot_be_read_say_why(pairs_of):
    call = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
    differ = {
        "chosen": [user("Q"), assistant("a"), user("Sure?"), assistant("Yes.")],
        "rejected": [user("Q"), assistant("b"), user("Sure?"), assistant("No.")],
    }
    found = pairs_of(
        [
            {
                "prompt": [user("Q")],
                "chosen": [assistant(None, tool_calls=call)],
                "rejected": [assistant("A")],
            },
            {"prompt": "Q", "chosen": ["a", "b"], "rejected": "c"},
            {"prompt": "Q", "chosen": "a"},
            {"query": "Q", "good": "a", "bad": "b"},
            {"prompt": "Q", "chosen": assistant("a", weight=0), "rejected": "b"},
            {"prompt": "Q", "chosen": user("a"), "rejected": "b"},
            differ,
            {"prompt": "Q", "chosen": 2, "rejected": 3},
        ]
    )
    assert found == [
        ("tools", "chosen[0].tool_calls: tools are not trained yet"),
        ("wrong type", "chosen is a list, write it as text"),
        (
            "missing column",
            "rejected: missing; the row has prompt, chosen",
        ),
        (
            "unknown columns",
            "no known form of preference pairs has the columns query, good, bad: "
            "name them in `pairs.columns`, as in {prompt: question, chosen: good, rejected: bad}, "
            "or write prompt, chosen and rejected",
        ),
        ("weight 0", "chosen[0]: the answer has weight 0, which carries no loss"),
        ("broken turns", "chosen: the conversation ends with the user's message"),
        ("different prompts", "chosen and rejected answer different prompts"),
        ([user("Q")], "2", "3", None),
    ]


def test_a_role_that_is_no_text_is_a_wrong_role():
    """A list could not even be looked up."""
    assert images_in([{"from": [], "value": "x"}]) == []
    with pytest.raises(Unusable, match=r"messages\[0\]\.from: '\[\]' is none of system, "):
        messages_of([{"from": [], "value": "x"}], "messages")
