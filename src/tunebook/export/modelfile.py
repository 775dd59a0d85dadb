"""An Ollama Modelfile whose template says what the tokenizer's chat template says.

Ollama has templates of its own kind (Go) and does not read the one in a GGUF file. So the chat template is rendered with
marks for the messages, and the text between the marks becomes the Go template; conversations are then rendered by
both sides' rules and must be equal.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError

MARKS = {"system": "\u2402S\u2403", "user": "\u2402U\u2403", "assistant": "\u2402A\u2403"}


Seams = dict[tuple[str, str], str]
"""The text between two messages by their roles; before the first (`("", role)`) and after the last (`(role, "")`)."""


def seams(tokenizer: Any) -> Seams:
    """Take a chat template apart. A leading `bos` is left out: the runtime adds it.

    Raises UserError for a template that treats messages differently in ways that seams cannot say.
    """
    found: Seams = {}
    for roles in (["user", "assistant", "user"], ["system", "user", "assistant", "user"]):
        rest = _rendered(tokenizer, [{"role": r, "content": MARKS[r]} for r in roles])
        for before, role in zip(["", *roles], roles, strict=False):
            text, mark, rest = rest.partition(MARKS[role])
            if not mark or found.setdefault((before, role), text) != text:
                raise UserError(
                    "this chat template cannot be written as an Ollama template: write the Modelfile by hand"
                )
        found["user", ""] = rest
    for turns in range(1, 4):
        for system in ([], [{"role": "system", "content": "Be brief."}]):
            talk = [
                {"role": role, "content": f"{role} {i}"}
                for i in range(turns)
                for role in ("user", "assistant")
            ]
            messages = [*system, *talk[:-1]]
            if _joined(found, messages) != _rendered(tokenizer, messages):
                raise UserError(
                    "this chat template cannot be written as an Ollama template: write the Modelfile by hand"
                )
    return found


def template(found: Seams) -> str:
    """The seams as a Go template over `.Messages`. Texts are quoted, so that white space in them stays."""

    def text(before: str, role: str) -> str:
        value = found[before, role]
        return "{{ " + json.dumps(value, ensure_ascii=False) + " }}" if value else ""

    return (
        '{{- $last := "" -}}{{- range .Messages -}}'
        f'{{{{- if eq .Role "system" -}}}}{text("", "system")}'
        f'{{{{- else if eq .Role "assistant" -}}}}{text("user", "assistant")}'
        f'{{{{- else if eq $last "system" -}}}}{text("system", "user")}'
        f'{{{{- else if eq $last "assistant" -}}}}{text("assistant", "user")}'
        f"{{{{- else -}}}}{text('', 'user')}{{{{- end -}}}}"
        "{{ .Content }}{{- $last = .Role -}}{{- end -}}"
        f'{{{{- if ne $last "assistant" -}}}}{text("user", "")}{{{{- end -}}}}'
    )


def modelfile(gguf: str, tokenizer: Any, stops: list[str], system: str | None, context: int) -> str:
    """The whole file: weights, template, stop tokens, the system prompt of training, greedy as in the evaluation."""
    lines = [f"FROM {gguf}", f'TEMPLATE """{template(seams(tokenizer))}"""']
    lines += [f'SYSTEM """{system}"""'] if system else []
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join([*lines, f"PARAMETER num_ctx {context}", "PARAMETER temperature 0"]) + "\n"


def _rendered(tokenizer: Any, messages: Messages) -> str:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token else text


def _joined(found: Seams, messages: Messages) -> str:
    roles = ["", *(m["role"] for m in messages)]
    return (
        "".join(
            found[pair] + m["content"] for pair, m in zip(itertools.pairwise(roles), messages, strict=True)
        )
        + found["user", ""]
    )
