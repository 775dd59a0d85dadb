"""Rows with tools, reasoning or weights: conversations that are more than texts of roles.

Such a row keeps its whole conversation as JSON (`chat`), in OpenAI's form, for the chat template to render.
Checks of texts see its messages as they see all others.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tunebook.data.fields import (
    REASONING,
    ROLES,
    TOOL_ROLES,
    as_text,
    is_missing,
    parsed,
    role_of,
    text_of_parts,
)
from tunebook.data.rows import Raw, Unusable
from tunebook.models.chat_template import Messages
from tunebook.models.turns import Conversation

# A tool's result, under the names that people give its role.
RESULTS = ("tool", "function", "observation", "ipython")


def has_more_than_text(turns: Any) -> bool:
    """Whether messages have tools, reasoning or a weight of 0."""
    turns = parsed(turns)
    return isinstance(turns, list) and any(map(_is_more_than_text, turns))


def conversation(raw: Raw, with_system: Callable[[Messages], Messages]) -> Conversation | None:
    """The conversation of a raw row with `messages` that has tools, reasoning or a weight; None for others.

    Args:
        with_system: Puts the recipe's system prompt first.

    Raises Unusable that names what cannot be read.
    """
    turns = parsed(raw.get("messages"))
    tools = parsed(raw.get("tools") or raw.get("functions"))
    if not isinstance(tools, list):  # a column of plain text may be about hammers
        tools = None
    if not isinstance(turns, list) or not turns or not (tools or has_more_than_text(turns)):
        return None
    messages = [_message(turn, f"messages[{i}]") for i, turn in enumerate(turns)]
    _check_turns(messages)
    system = raw.get("system") or raw.get("system_prompt")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": as_text(system, "system")})
    return Conversation(with_system(messages), tools or None)


def dumped(chat: Conversation) -> str:
    """A conversation as a row keeps it."""
    return json.dumps({"messages": chat.messages, "tools": chat.tools}, ensure_ascii=False)


def as_texts(chat: Conversation) -> tuple[Messages, Messages]:
    """Prompt and completion of roles and texts, for checks and tables; a call of a tool is its JSON."""
    texts = []
    for message in chat.messages:
        content = str(message.get("content") or "")
        if message.get("tool_calls"):
            content = f"{content} {json.dumps(message['tool_calls'], ensure_ascii=False)}".strip()
        texts.append({"role": message["role"], "content": content})
    return texts[:-1], texts[-1:]


def _is_more_than_text(turn: Any) -> bool:
    if not isinstance(turn, dict):
        return False
    has_reasoning = any(turn.get(key) for key in REASONING)
    weight = turn.get("weight")
    has_no_weight = not is_missing(weight) and not weight
    # Its role alone may say so: a tool's result, ShareGPT's call.
    return role_of(turn) in TOOL_ROLES or bool(_calls(turn)) or has_reasoning or has_no_weight


def _calls(turn: Raw) -> list[Any]:
    """The calls of tools in a message, perhaps as JSON in a text; OpenAI's older form has one alone."""
    calls = parsed(turn.get("tool_calls") or turn.get("function_call")) or []
    return calls if isinstance(calls, list) else [calls]


def _message(turn: Any, name: str) -> dict[str, Any]:
    """A message in OpenAI's form, with the keys that chat templates read. Raises Unusable."""
    if not isinstance(turn, dict):
        raise Unusable("wrong type", f"{name}: not a message with role and content")
    role = role_of(turn)
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = text_of_parts(content, f"{name}.content")
    if role == "function_call":  # ShareGPT's
        return {"role": "assistant", "content": "", "tool_calls": [_call(parsed(content), name)]}
    if role in RESULTS:
        result = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        return {"role": "tool", "content": result}
    if not isinstance(role, str) or role not in ROLES:
        raise Unusable("wrong role", f"{name}.role: {role!r} is none of {', '.join([*ROLES, *RESULTS])}")
    message: dict[str, Any] = {"role": ROLES[role]}
    calls = _calls(turn)
    if calls:
        message["content"] = "" if is_missing(content) else as_text(content, f"{name}.content")
        message["tool_calls"] = [_call(call, f"{name}.tool_calls") for call in calls]
    else:
        message["content"] = as_text(content, f"{name}.content")
    for key in REASONING:
        if turn.get(key):
            message["reasoning_content"] = as_text(turn[key], f"{name}.{key}")
    weight = turn.get("weight")
    if not is_missing(weight) and not weight:
        message["weight"] = 0
    return message


def _call(call: Any, name: str) -> dict[str, Any]:
    """A call of a tool; its arguments as an object, which every template can write."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not function.get("name"):
        raise Unusable("wrong type", f"{name}: not a call with the name of a function")
    arguments = parsed(function.get("arguments")) or {}
    return {"type": "function", "function": {"name": str(function["name"]), "arguments": arguments}}


def _check_turns(messages: list[dict[str, Any]]) -> None:
    """Raises Unusable when the turns are in no order that a model could have spoken in."""
    expected = {"user"}
    last = messages[-1]["role"]
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "system" and i == 0:
            continue
        if role not in expected:
            raise Unusable("broken turns", f"turn {i + 1} is the {role}'s, the {min(expected)}'s is expected")
        if not message["content"].strip() and not message.get("tool_calls"):
            raise Unusable("broken turns", f"turn {i + 1} is empty")
        expected = {"user"} if role == "assistant" else {"assistant"}
        # A tool answers a call, and several may.
        if message.get("tool_calls") or role == "tool":
            expected.add("tool")
    if last != "assistant":
        raise Unusable("broken turns", f"the conversation ends with the {last}'s message")
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not any(messages[i].get("weight", 1) for i in answers):
        raise Unusable("weight 0", f"messages[{answers[-1]}]: the answer has weight 0, which carries no loss")
