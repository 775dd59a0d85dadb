"""An Ollama Modelfile whose template says what the tokenizer's chat template says.

Ollama has templates of its own kind (Go) and does not read the one in a GGUF file. So the chat template is
rendered with marks for the messages, and the text between the marks becomes the Go template; conversations
are then rendered by both sides' rules and must be equal.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError, first_line, shorten

MARKS = {"system": "\u2402S\u2403", "user": "\u2402U\u2403", "assistant": "\u2402A\u2403"}
"""What stands for a message's text: characters that no template has."""

Seams = dict[tuple[str, str], str]
"""The text between two messages by their roles.

Before the first it is `("", role)`, after the last `(role, "")`.
"""


def seams(tokenizer: Any) -> Seams:
    """Take a chat template apart. A leading `bos` is left out: the runtime adds it.

    Raises UserError for a template that treats messages differently in ways that seams cannot say.
    """
    refusal = UserError(
        "this chat template cannot be written as an Ollama template: write the Modelfile by hand"
    )
    texts: Seams = {}
    for roles in (["user", "assistant", "user"], ["system", "user", "assistant", "user"]):
        rest = _rendered(tokenizer, [{"role": role, "content": MARKS[role]} for role in roles])
        for before, role in itertools.pairwise(["", *roles]):
            text, mark, rest = rest.partition(MARKS[role])
            if not mark or texts.setdefault((before, role), text) != text:
                raise refusal
        texts["user", ""] = rest
    # A template may do more than put texts between messages: number them, say, or leave old ones out.
    for messages in _conversations():
        if _joined(texts, messages) != _rendered(tokenizer, messages):
            raise refusal
    return texts


def template(texts: Seams) -> str:
    """The seams as a Go template over `.Messages`. Texts are quoted, so that white space in them stays."""

    def seam(before: str, role: str) -> str:
        text = texts[before, role]
        return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""

    # The dashes eat the white space round a tag; `$last` is the role of the message before.
    parts = [
        '{{- $last := "" -}}{{- range .Messages -}}',
        '{{- if eq .Role "system" -}}' + seam("", "system"),
        '{{- else if eq .Role "assistant" -}}' + seam("user", "assistant"),
        '{{- else if eq $last "system" -}}' + seam("system", "user"),
        '{{- else if eq $last "assistant" -}}' + seam("assistant", "user"),
        "{{- else -}}" + seam("", "user") + "{{- end -}}",
        "{{ .Content }}{{- $last = .Role -}}{{- end -}}",
        '{{- if ne $last "assistant" -}}' + seam("user", "") + "{{- end -}}",
    ]
    return "".join(parts)


CONTEXT = 32_768
"""Tokens that Ollama makes room for, at most. Each takes memory from the start: 147 KB in Qwen3-4B."""


def modelfile(gguf: str, tokenizer: Any, stops: list[str], system: str | None, context: int) -> str:
    """The whole file: weights, template, the system prompt of training, stop tokens, greedy answers.

    Greedy because the evaluation is. `context`: the tokens that the model can read.
    """
    lines = [f"FROM {gguf}", f'TEMPLATE """{template(seams(tokenizer))}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    for stop in stops:
        lines.append(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}")
    if context > CONTEXT:
        lines.append(f"# The model reads up to {context} tokens; more room takes more memory.")
    lines += [f"PARAMETER num_ctx {min(context, CONTEXT)}", "PARAMETER temperature 0"]
    return "\n".join(lines) + "\n"


def unsaid(tokenizer: Any, user_prompt: str) -> list[str]:
    """What the model was trained with and a Modelfile has no place for, each as a sentence.

    Args:
        user_prompt: What each question was put into; `{question}` alone is nothing.
    """
    sentences = []
    if user_prompt != "{question}":
        text = shorten(" ".join(user_prompt.split()))
        sentences.append(f"each question was put into data.user_prompt ({text}): ask it like that")
    template_text = str(getattr(tokenizer, "chat_template", ""))
    if "strftime_now" in template_text:
        sentences.append("the chat template writes today's date, and the Modelfile has that of the export")
    return sentences


def _conversations() -> Iterator[Messages]:
    """Of one to three turns, each with a system message and without; the last message is a question."""
    talk: Messages = []
    for turn in range(3):
        talk.append({"role": "user", "content": f"user {turn}"})
        yield list(talk)
        yield [{"role": "system", "content": "Be brief."}, *talk]
        talk.append({"role": "assistant", "content": f"assistant {turn}"})


def _rendered(tokenizer: Any, messages: Messages) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        # Those of Gemma 2 and older Mistral raise for a system message.
        roles = " and ".join(sorted({message["role"] for message in messages}))
        raise UserError(
            f"this chat template cannot be written as an Ollama template, it raises {first_line(error)!r} "
            f"for messages of {roles}: write the Modelfile by hand"
        ) from error
    return text.removeprefix(tokenizer.bos_token or "")


def _joined(texts: Seams, messages: Messages) -> str:
    """A conversation put together by its seams."""
    rendered = ""
    last = ""
    for message in messages:
        rendered += texts[last, message["role"]] + message["content"]
        last = message["role"]
    return rendered + texts["user", ""]
