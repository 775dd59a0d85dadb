"""The formats people have, one function each: a raw row becomes `messages`, or `prompt` and `completion`.

To add one, write its function and its line in `recognise.FORMS`; the recipe's `format` takes the same name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tunebook.data import tools
from tunebook.data.fields import (
    MissingColumn,
    as_text,
    is_missing,
    messages_of,
    parsed,
    refuse_tools,
    text_of,
)
from tunebook.data.prompts import Prompts
from tunebook.data.rows import Raw, Unusable
from tunebook.data.templated import is_templated, turns_of
from tunebook.models.chat_template import Messages

# What rows of Alpaca's form have for an input when there is none.
NO_INPUT = re.compile(r"\W*(?:no\W?input|n/a)\W*", re.IGNORECASE)

# The last line of a solution of GSM8K.
GSM8K_RESULT = re.compile(r"####\s*[-+$]?[\d.,]+\s*$")

# What NuminaMath has for an answer when there is none to check.
NO_ANSWER = ("proof", "notfound")

# Names of the question and of the answer, in the order in which they are looked for.
QUESTIONS = ("prompt", "question", "instruction", "query", "problem", "input", "user", "human")
ANSWERS = ("completion", "response", "output", "answer", "solution", "assistant")


def chat(raw: Raw) -> Raw:
    """`messages` as OpenAI and TRL have them, or `prompt` and `completion`, each as text or messages."""
    if str(raw.get("label")).strip().lower() == "false":  # a .csv file has text
        raise Unusable("labelled false", "label: the completion is a bad one; pairs are made of such rows")
    return raw


def alpaca(raw: Raw) -> Raw:
    """`instruction`, `input` (often empty) and `output`; the input stands below the instruction.

    `history`, as LLaMA-Factory has it, is a list of earlier questions and answers.

    Source: Taori et al. 2023.
    """
    prompt = below(text_of(raw, "instruction"), raw)
    own = {"messages": None, "prompt": prompt, "input": None, "context": None}
    return {**raw, **own, "completion": text_of(raw, "output")}


def sharegpt(raw: Raw) -> Raw:
    """`conversations` of turns `from` and `value` (or `role` and `content`); trained on the last answer."""
    turns = raw.get("conversations")
    if turns is None:
        turns = raw.get("conversation")
    if turns is None:
        raise MissingColumn("conversations")
    # With tools, reasoning or weights the turns are read as they are (`tools.py`).
    if tools.has_more_than_text(turns):
        return {**raw, "messages": turns}
    return {**raw, "messages": messages_of(turns, "conversations")}


def gsm8k(raw: Raw) -> Raw:
    """`question` and `answer`, whose last line is `#### 1,234`.

    Calculator marks (`<<2+3=5>>`) are left out, and the result is boxed to be read as any other answer.

    Source: Cobbe et al. 2021.
    """
    # The last mark counts: a solution may have others.
    solution, mark, result = text_of(raw, "answer").rpartition("####")
    gold = result.strip().replace(",", "")
    if not mark or not result.strip():
        raise Unusable("no result", "answer: no #### before the result")
    solution = re.sub(r"<<[^<>]*>>", "", solution).strip()
    return {
        **raw,
        "messages": None,
        "prompt": text_of(raw, "question"),
        "completion": f"{solution}\n\\boxed{{{gold}}}".strip(),
        "answer": gold,
    }


def maths(raw: Raw) -> Raw:
    """`problem` and `solution` with its result in `\\boxed{}`; an `answer` is checked where there is one.

    Source: MATH (Hendrycks et al. 2021), NuminaMath (Li et al. 2024), whose `messages` hold the same.
    """
    answer = raw.get("answer")
    if isinstance(answer, str) and answer.strip().lower() in NO_ANSWER:
        answer = None
    return {
        **raw,
        "messages": None,
        "prompt": text_of(raw, "problem"),
        "completion": text_of(raw, "solution"),
        "answer": answer,
    }


def templated_text(raw: Raw) -> Raw:
    """`text` with question and answer in one, as a chat template has written them."""
    return {**raw, "messages": turns_of(text_of(raw, "text"))}


def question_answer(raw: Raw) -> Raw:
    """A question and an answer as text, under the commonest of their names.

    `answer` is the exact answer only where something else is the completion. A `context`, as in Dolly, stands
    below the question as an `input` does.
    """
    question = _first_of(QUESTIONS, raw)
    # A column cannot be both: `instruction`, `input` and nothing else has no answer.
    answer = _first_of([name for name in ANSWERS if name != question], raw)
    row = {**raw, "messages": None, "input": None, "context": None, "completion": text_of(raw, answer)}
    prompt = text_of(raw, question)
    row["prompt"] = prompt if question == "input" else below(prompt, raw)
    if answer == "answer":
        row["answer"] = None
    return row


def _first_of(names: Sequence[str], raw: Raw) -> str:
    """The first of these columns that a row has; the commonest, to be named as missing, where it has none."""
    for name in names:
        if not is_missing(raw.get(name)):
            return name
    for name in names:
        if name in raw:
            return name
    return names[0]


def below(prompt: str, raw: Raw) -> str:
    """A prompt with the row's `input` (or `context`) below it, where it has one."""
    # An empty text or list is none; 0 is a number like any other.
    filled = [name for name in ("input", "context") if raw.get(name) or raw.get(name) == 0]
    if not filled:
        return prompt
    further = text_of(raw, filled[0])
    # Only the beginning is looked at: the pattern is slow on a text of many thousand characters.
    if not further.strip() or NO_INPUT.fullmatch(further[:100]) or further == prompt:
        return prompt
    return f"{prompt}\n\n{further}".strip()


def has_no_other_messages(raw: Raw) -> bool:
    """Whether a row has no `messages`, or, as NuminaMath's, the same text in them."""
    messages = raw.get("messages")
    if not isinstance(messages, list) or not messages:
        return True
    first = messages[0]
    return isinstance(first, dict) and first.get("content") == raw.get("problem")


def has_template(raw: Raw) -> bool:
    """Whether question and answer can be told apart in a row's text."""
    return is_templated(raw.get("text"))


def ends_in_result(raw: Raw) -> bool:
    """Whether a row's answer ends as those of GSM8K do."""
    answer = raw.get("answer")
    # From the last mark on, as the pattern would begin at each.
    return isinstance(answer, str) and bool(GSM8K_RESULT.fullmatch(answer[answer.rfind("####") :][:100]))


def conversation(raw: Raw, prompts: Prompts) -> tuple[Messages, Messages]:
    """Prompt and completion of a raw row; its own `system` text goes before the recipe's.

    Raises Unusable that names the field.
    """
    refuse_tools(raw)  # of other forms than `messages`, and of preference sets
    # A column that is there and empty counts as missing: Parquet and CSV have every column in every row.
    if not is_missing(raw.get("messages")):
        messages = messages_of(raw["messages"], "messages")
        prompt = messages[:-1]
        completion = messages[-1:]
    else:
        prompt, completion = _prompt_and_completion(raw, prompts)
    if completion[-1]["role"] != "assistant":
        raise Unusable("broken turns", f"the conversation ends with the {completion[-1]['role']}'s message")
    if len(completion) != 1:
        raise Unusable("broken turns", f"completion: {len(completion)} messages, the answer should be one")
    if not prompt or prompt[-1]["role"] != "user":
        raise Unusable("broken turns", "prompt: must end with a user message")
    system = raw.get("system") or raw.get("system_prompt")
    if system and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": as_text(system, "system")}, *prompt]
    return prompts.with_system(prompt), completion


def prompt_alone(raw: Raw, prompts: Prompts) -> tuple[Messages, Messages]:
    """Prompt and completion of a raw row whose completion may be missing: then there are no messages of it.

    Raises Unusable that names the field.
    """
    if not is_missing(raw.get("completion")):
        return conversation(raw, prompts)
    prompt, _ = conversation({**raw, "messages": None, "completion": "none yet"}, prompts)
    return prompt, []


def gold_of(raw: Raw) -> str | None:
    """The exact final answer of a raw row (`answer` or `gold`), if it has one.

    Raises Unusable for a list or an object.
    """
    answer = raw.get("answer", raw.get("gold"))
    if isinstance(answer, list | dict | bytes):
        raise Unusable("wrong type", "answer: neither text nor a number")
    if is_missing(answer) or not str(answer).strip():
        return None
    return str(answer)


def _prompt_and_completion(raw: Raw, prompts: Prompts) -> tuple[Messages, Messages]:
    """Either of the two may be text or messages; `history` and `input` go with a prompt that is text."""
    for name in ("prompt", "completion"):
        if is_missing(raw.get(name)):
            raise MissingColumn(name)
    if isinstance(raw["prompt"], list | dict):
        prompt = messages_of(raw["prompt"], "prompt", trained=False)
    else:
        question = below(text_of(raw, "prompt"), raw)
        # The system prompt is put first later.
        prompt = [*_history(raw.get("history")), *prompts.ask(question)[-1:]]
    if isinstance(raw["completion"], list | dict) and _are_messages(raw["completion"]):
        completion = messages_of(raw["completion"], "completion")
    else:
        completion = [{"role": "assistant", "content": text_of(raw, "completion")}]
    return prompt, completion


def _are_messages(value: Any) -> bool:
    """Whether a list or object is meant for messages: a list of words is not."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict)


def _history(turns: Any) -> Messages:
    """Earlier turns as `[[question, answer], ...]` or as messages."""
    turns = parsed(turns)
    if not turns:
        return []
    if isinstance(turns, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        messages = []
        for i, (question, answer) in enumerate(turns):
            messages.append({"role": "user", "content": as_text(question, f"history[{i}]")})
            messages.append({"role": "assistant", "content": as_text(answer, f"history[{i}]")})
        return messages
    if _are_messages(turns):
        return messages_of(turns, "history", trained=False)
    raise Unusable("wrong type", "history: neither pairs of question and answer nor messages")
