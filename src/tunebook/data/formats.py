"""The formats people have, one function each: a raw row becomes `messages`, or `prompt` and `completion`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tunebook.data.records import Raw
from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import find_file, read_text
from tunebook.recipe.sections import Recipe


class Prompts:
    """The recipe's prompt files, read once, wrapped round bare questions."""

    def __init__(self, recipe: Recipe) -> None:
        data = recipe.data
        self.system = read_text(find_file(data.system_prompt)).strip() if data.system_prompt else None
        self.user = read_text(find_file(data.user_prompt)).strip() if data.user_prompt else "{question}"
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


NO_INPUT = re.compile(r"\W*(?:no\W?input|n/a)\W*", re.IGNORECASE)
"""What rows of Alpaca's form have for an input when there is none."""


ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Who speaks in ShareGPT's form, as a message's role."""


def _alpaca(raw: Raw) -> Raw:
    """`instruction`, `input` (often empty) and `output` (Taori et al. 2023); the input stands below the instruction."""
    instruction, given = _text(raw, "instruction"), _text(raw | {"input": raw.get("input") or ""}, "input")
    prompt = (
        instruction
        if not given.strip() or NO_INPUT.fullmatch(given[:100])
        else f"{instruction}\n\n{given}".strip()
    )
    return {**raw, "messages": None, "prompt": prompt, "completion": _text(raw, "output")}


def _sharegpt(raw: Raw) -> Raw:
    """`conversations` of turns `from` and `value` (or `role` and `content`); the last answer is what is trained on."""
    turns = raw.get("conversations")
    if not isinstance(turns, list):
        raise ValueError("conversations: not a list of turns")
    messages = []
    for i, turn in enumerate(turns):
        said = turn if isinstance(turn, dict) else {}
        who = said.get("from", said.get("role"))
        if not isinstance(who, str) or who not in ROLES:
            raise ValueError(f"conversations[{i}].from: {who!r} is none of {', '.join(ROLES)}")
        text = said.get("value", said.get("content"))
        if not isinstance(text, str):
            raise ValueError(f"conversations[{i}].value: not text")
        messages.append({"role": ROLES[who], "content": text})
    return {**raw, "messages": messages}


def _gsm8k(raw: Raw) -> Raw:
    """`question` and `answer`, whose last line is `#### 1,234` (Cobbe et al. 2021). Calculator marks (`<<2+3=5>>`) are left out, and
    the result is boxed, so that it is read as any other answer."""
    solution, mark, result = _text(raw, "answer").rpartition("####")
    if not mark or not result.strip():
        raise ValueError("answer: no #### before the result")
    gold = result.strip().replace(",", "")
    solution = re.sub(r"<<[^<>]*>>", "", solution).strip()
    return {
        **raw,
        "messages": None,
        "prompt": _text(raw, "question"),
        "completion": f"{solution}\n\\boxed{{{gold}}}".strip(),
        "answer": gold,
    }


FORMATS: dict[str, Callable[[Raw], Raw]] = {
    "chat": dict,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "gsm8k": _gsm8k,
}
"""A raw row of a format, as `messages` or as `prompt` + `completion`. Raises ValueError that names the field."""


def _text(raw: Raw, name: str) -> str:
    if not isinstance(raw.get(name), str):
        raise ValueError(f"{name}: {'missing' if raw.get(name) is None else 'not text'}")
    return str(raw[name])


def conversation(raw: Raw, prompts: Prompts) -> tuple[Messages, Messages]:
    """Prompt and completion of a raw row; its own `system` text goes before the recipe's. Raises ValueError that names the field."""
    if raw.get("messages") is not None:
        messages = _messages(raw["messages"], "messages")
        prompt, completion = messages[:-1], messages[-1:]
    else:
        for name in ("prompt", "completion"):
            if raw.get(name) is None:
                raise ValueError(f"{name}: missing")
        prompt = (
            prompts.ask(raw["prompt"])[-1:]
            if isinstance(raw["prompt"], str)
            else _messages(raw["prompt"], "prompt")
        )
        if isinstance(raw["completion"], str):
            completion = [{"role": "assistant", "content": raw["completion"]}]
        else:
            completion = _messages(raw["completion"], "completion")
    if len(completion) != 1 or completion[0]["role"] != "assistant":
        raise ValueError("completion: the last message must be the assistant's, and alone")
    if not prompt or prompt[-1]["role"] != "user":
        raise ValueError("prompt: must end with a user message")
    if raw.get("system") and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": _text(raw, "system")}, *prompt]
    return prompts.with_system(prompt), completion


def _messages(value: Any, name: str) -> Messages:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: not a list of messages")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"{name}[{i}].content: not text")
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"{name}[{i}].role: {message.get('role')!r} is none of system, user, assistant")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def gold_of(raw: dict[str, Any]) -> str | None:
    """The exact final answer of a raw row (`answer` or `gold`), if it has one. Raises ValueError for a list or an object."""
    answer = raw.get("answer", raw.get("gold"))
    if isinstance(answer, list | dict | bytes):
        raise ValueError("answer: neither text nor a number")
    return None if answer is None or not str(answer).strip() else str(answer)
