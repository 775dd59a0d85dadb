"""Single values of a raw row: text, messages, images in messages; and what cannot be trained on yet.

What cannot be read raises `Unusable` with a reason of its own, because a wrong type, a wrong role, turns out
of order and a missing column are mended in different ways.
"""

from __future__ import annotations

import base64
import json
import math
from datetime import date
from decimal import Decimal
from typing import Any

from tunebook.data.rows import Raw, Unusable
from tunebook.models.chat_template import Messages

# Who speaks, as a message's role; the names of OpenAI, ShareGPT, LangChain, OpenAssistant and their kin.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")

# Of a row, and of a message, what says that the model uses tools.
TOOLS = ("tools", "functions", "tool_calls", "function_call")
REASONING = ("reasoning_content", "reasoning", "thinking")

# What kinds of value are called in messages.
KINDS: dict[type, str] = {list: "a list", dict: "an object", bytes: "bytes"}


class MissingColumn(Unusable):
    """A column without which a row cannot be read."""

    def __init__(self, name: str) -> None:
        super().__init__("missing column", f"{name}: missing")
        self.name = name


def is_missing(value: Any) -> bool:
    """Whether a value is none: null, or the `NaN` that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def lower_cased(raw: Raw) -> Raw:
    """A raw row with its columns under names in lower case, as all forms have them; none takes another's."""
    row = dict(raw)
    for name in raw:
        if name.lower() not in row:
            row[name.lower()] = row.pop(name)
    return row


def text_of(raw: Raw, name: str) -> str:
    """A column as text; a number, a date, or true, is taken as it is written. Raises Unusable."""
    if is_missing(raw.get(name)):
        raise MissingColumn(name)
    return as_text(raw[name], name)


def as_text(value: Any, name: str) -> str:
    """A value as text; `name` is for the message of Unusable."""
    if is_missing(value):
        raise Unusable("wrong type", f"{name} is empty, it should be text")
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()  # as JSON writes it
    if isinstance(value, int | float | Decimal | date):  # the last two are Parquet's
        return str(value)
    kind = KINDS.get(type(value), type(value).__name__)
    raise Unusable("wrong type", f"{name} is {kind}, write it as text")


def messages_of(value: Any, name: str, trained: bool = True) -> Messages:
    """A conversation as messages of `role` and `content`.

    Read are messages of OpenAI (`role`, `content` as text or as parts) and turns of ShareGPT (`from`,
    `value`), one alone, and either as JSON in a text, as CSV has them.

    Args:
        name: Of the column, for messages.
        trained: Whether the last one is learnt: then one of weight 0 is refused.

    Raises Unusable that names the message.
    """
    value = parsed(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise Unusable("wrong type", f"{name}: not a list of messages")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            raise Unusable("wrong type", f"{name}[{i}]: not a message with role and content")
        messages.append(_message(message, f"{name}[{i}]"))
    weight = value[-1].get("weight")
    if trained and messages[-1]["role"] == "assistant" and not is_missing(weight) and not weight:
        raise Unusable(
            "weight 0", f"{name}[{len(value) - 1}]: the answer has weight 0, which carries no loss"
        )
    return messages


def parsed(value: Any) -> Any:
    """What a text of JSON holds, if it is one."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def role_of(message: Raw) -> str | None:
    """Who speaks, as `ROLES` and `TOOL_ROLES` write it: `Human` is `human`. What is no text, as it looks."""
    role = message.get("role", message.get("from"))
    if role is None:
        return None
    return role.strip().lower() if isinstance(role, str) else repr(role)


def _message(message: Raw, name: str) -> dict[str, str]:
    role_key = "role" if "role" in message else "from"
    content_key = "content" if "content" in message else "value"
    role = role_of(message)
    refuse_tools(message, name)
    if role in TOOL_ROLES:
        raise Unusable("tools", f"{name}: role {role!r}; tools are not trained yet")
    if not isinstance(role, str) or role not in ROLES:
        raise Unusable("wrong role", f"{name}.{role_key}: {role!r} is none of {', '.join(ROLES)}")
    for key in REASONING:
        if message.get(key):
            raise Unusable(
                "reasoning",
                f"{name}.{key}: not trained yet; write it into the answer itself",
            )
    content = message.get(content_key)
    if isinstance(content, list):
        content = text_of_parts(content, f"{name}.{content_key}")
    return {"role": ROLES[role], "content": as_text(content, f"{name}.{content_key}")}


def refuse_tools(raw: Raw, name: str = "") -> None:
    """Raises Unusable for a row or message with tools, which would be no sense without them."""
    for key in TOOLS:
        value = parsed(raw.get(key))
        # A column of plain text may be about hammers.
        if value and isinstance(value, list | dict):
            place = f"{name}.{key}" if name else key
            raise Unusable("tools", f"{place}: tools are not trained yet")


def text_of_parts(parts: list[Any], name: str) -> str:
    """The text of OpenAI's content parts, one a line; images are read by `images_in`."""
    texts = []
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in ("text", "input_text", "output_text"):
            texts.append(as_text(part.get("text"), f"{name}[{i}].text"))
        elif kind not in IMAGE_PARTS:
            raise Unusable("wrong type", f"{name}[{i}]: {kind!r} is not read, only text and images are")
    return "\n".join(texts)


IMAGE_PARTS = ("image", "image_url", "input_image")


def images_in(messages: Any) -> list[Any]:
    """The images in content parts, as a column `images` names them: file names, or `{"bytes": ...}`.

    Raises Unusable for one on the web, and for one after the first question, before which all are shown.
    """
    found = []
    questions = 0
    for message in _objects(parsed(messages)):
        questions += ROLES.get(role_of(message) or "") == "user"
        for part in _objects(message.get("content")):
            image = _image_of_part(part) if part.get("type") in IMAGE_PARTS else None
            # A part without its image stands for the next one of the row's own column.
            if image is None:
                continue
            if questions > 1:
                raise Unusable("image", "images in later messages are not read, put them into the first")
            found.append(image)
    return found


def _objects(value: Any) -> list[Raw]:
    """The objects in a list; none of what is no list."""
    if not isinstance(value, list):
        return []
    return [item for item in value if isinstance(item, dict)]


def _image_of_part(part: Raw) -> Any:
    image = part.get("image") or part.get("image_url") or part.get("url") or part.get("path")
    if isinstance(image, dict):
        image = image.get("url", image)
    if not isinstance(image, str):
        return image
    if image.startswith(("http://", "https://")):
        raise Unusable("image", f"{image[:80]}: images are not fetched, name a file beside the rows")
    if image.startswith("data:"):
        _, _, content = image.partition(",")
        try:
            return {"bytes": base64.b64decode(content, validate=True)}
        except ValueError:
            raise Unusable("image", "an image in the text is no base64") from None
    return image
