"""The formats people have, one function each: a raw row becomes `messages`, or `prompt` and `completion`.

To add one, write its function and its line in `FORMATS`; the recipe's `format` takes the same name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tunebook.data.records import Raw
from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import read_text
from tunebook.recipe.sections import Recipe


class Prompts:
    """The recipe's prompt files, read once, wrapped round bare questions."""

    def __init__(self, recipe: Recipe) -> None:
        data = recipe.data
        self.system: str | None = None
        self.user = "{question}"
        if data.system_prompt:
            self.system = read_text(data.find_file(data.system_prompt)).strip()
        if data.user_prompt:
            self.user = read_text(data.find_file(data.user_prompt)).strip()
        if "{question}" not in self.user:
            raise UserError(f"{data.user_prompt} has no {{question}}")

    def ask(self, question: str) -> Messages:
        """A bare question as the model gets to see it, the same in training, evaluation and chat."""
        return self.with_system([{"role": "user", "content": self.user.replace("{question}", question)}])

    def with_system(self, messages: Messages) -> Messages:
        """Put the recipe's system prompt first, unless the conversation has one."""
        if self.system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system}, *messages]


# What rows of Alpaca's form have for an input when there is none.
NO_INPUT = re.compile(r"\W*(?:no\W?input|n/a)\W*", re.IGNORECASE)

# Who speaks in ShareGPT's form, as a message's role.
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def alpaca(raw: Raw) -> Raw:
    """`instruction`, `input` (often empty) and `output`; the input stands below the instruction.

    Source: Taori et al. 2023.
    """
    prompt = _text(raw, "instruction")
    if raw.get("input"):
        below = _text(raw, "input")
        # Only the beginning is looked at: the pattern is slow on a text of many thousand characters.
        if below.strip() and not NO_INPUT.fullmatch(below[:100]):
            prompt = f"{prompt}\n\n{below}".strip()
    return {**raw, "messages": None, "prompt": prompt, "completion": _text(raw, "output")}


def sharegpt(raw: Raw) -> Raw:
    """`conversations` of turns `from` and `value` (or `role` and `content`); trained on the last answer."""
    turns = raw.get("conversations")
    if not isinstance(turns, list):
        raise ValueError("conversations: not a list of turns")
    messages = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            turn = {}
        speaker = turn.get("from", turn.get("role"))
        text = turn.get("value", turn.get("content"))
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise ValueError(f"conversations[{i}].from: {speaker!r} is none of {', '.join(ROLES)}")
        if not isinstance(text, str):
            raise ValueError(f"conversations[{i}].value: not text")
        messages.append({"role": ROLES[speaker], "content": text})
    return {**raw, "messages": messages}


def gsm8k(raw: Raw) -> Raw:
    """`question` and `answer`, whose last line is `#### 1,234`.

    Calculator marks (`<<2+3=5>>`) are left out, and the result is boxed to be read as any other answer.

    Source: Cobbe et al. 2021.
    """
    # The last mark counts: a solution may have others.
    solution, mark, result = _text(raw, "answer").rpartition("####")
    gold = result.strip().replace(",", "")
    if not mark or not result.strip():
        raise ValueError("answer: no #### before the result")
    solution = re.sub(r"<<[^<>]*>>", "", solution).strip()
    return {
        **raw,
        "messages": None,
        "prompt": _text(raw, "question"),
        "completion": f"{solution}\n\\boxed{{{gold}}}".strip(),
        "answer": gold,
    }


# Each makes of a raw row one with `messages`, or with `prompt` and `completion`; where it cannot, it raises
# ValueError that names the field.
FORMATS: dict[str, Callable[[Raw], Raw]] = {
    "chat": dict,
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "gsm8k": gsm8k,
}


def conversation(raw: Raw, prompts: Prompts) -> tuple[Messages, Messages]:
    """Prompt and completion of a raw row; its own `system` text goes before the recipe's.

    Raises ValueError that names the field.
    """
    # A column that is there and empty counts as missing: Parquet and CSV have every column in every row.
    if raw.get("messages") is not None:
        messages = _messages(raw["messages"], "messages")
        prompt = messages[:-1]
        completion = messages[-1:]
    else:
        prompt, completion = _prompt_and_completion(raw, prompts)
    if len(completion) != 1 or completion[0]["role"] != "assistant":
        raise ValueError("completion: the last message must be the assistant's, and alone")
    if not prompt or prompt[-1]["role"] != "user":
        raise ValueError("prompt: must end with a user message")
    if raw.get("system") and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": _text(raw, "system")}, *prompt]
    return prompts.with_system(prompt), completion


def gold_of(raw: Raw) -> str | None:
    """The exact final answer of a raw row (`answer` or `gold`), if it has one.

    Raises ValueError for a list or an object.
    """
    answer = raw.get("answer", raw.get("gold"))
    if isinstance(answer, list | dict | bytes):
        raise ValueError("answer: neither text nor a number")
    if answer is None or not str(answer).strip():
        return None
    return str(answer)


def _prompt_and_completion(raw: Raw, prompts: Prompts) -> tuple[Messages, Messages]:
    """Either of the two may be text or a list of messages."""
    for name in ("prompt", "completion"):
        if raw.get(name) is None:
            raise ValueError(f"{name}: missing")
    if isinstance(raw["prompt"], str):
        prompt = prompts.ask(raw["prompt"])[-1:]  # the system prompt is put first later
    else:
        prompt = _messages(raw["prompt"], "prompt")
    if isinstance(raw["completion"], str):
        completion = [{"role": "assistant", "content": raw["completion"]}]
    else:
        completion = _messages(raw["completion"], "completion")
    return prompt, completion


def _text(raw: Raw, name: str) -> str:
    text = raw.get(name)
    if text is None:
        raise ValueError(f"{name}: missing")
    if not isinstance(text, str):
        raise ValueError(f"{name}: not text")
    return text


def _messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: not a list of messages")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"{name}[{i}].content: not text")
        role = message.get("role")
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"{name}[{i}].role: {role!r} is none of system, user, assistant")
        messages.append({"role": role, "content": message["content"]})
    return messages
