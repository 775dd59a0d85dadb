"""Rows of one `text` in which a chat template stands already, taken apart into messages."""

from __future__ import annotations

import re

from tunebook.data.rows import Unusable
from tunebook.models.chat_template import Messages

# How a turn begins, with who speaks.
TEMPLATES = (
    r"<\|im_start\|>(\w+)",  # ChatML: Qwen, SmolLM2
    r"<\|start_header_id\|>(\w+)<\|end_header_id\|>",  # Llama 3
    r"<start_of_turn>(\w+)",  # Gemma
    r"<\|(system|user|assistant)\|>",  # Zephyr, Phi-3
    r"(\[INST\]|\[/INST\]|<<SYS>>|<</SYS>>)",  # Llama 2, Mistral
    r"### (Human|Assistant):",  # Guanaco
    r"### (Instruction|Input|Response):",  # Alpaca
)

# Who speaks; what stands between <</SYS>> and [/INST] is the user's.
SPEAKERS = {
    "system": "system",
    "<<SYS>>": "system",
    "user": "user",
    "Human": "user",
    "[INST]": "user",
    "<</SYS>>": "user",
    "Instruction": "user",
    "Input": "user",
    "assistant": "assistant",
    "model": "assistant",
    "Assistant": "assistant",
    "[/INST]": "assistant",
    "Response": "assistant",
}

# What ends a turn, or begins the whole.
ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"),
    *("<|begin_of_text|>", "<bos>", "<eos>", "<s>", "</s>"),
)

# Alpaca's first sentence belongs to its template.
PREAMBLE = "Below is an instruction"


def is_templated(text: object) -> bool:
    """Whether a question and an answer can be told apart in a text."""
    return isinstance(text, str) and _template_of(text) is not None


def turns_of(text: str) -> Messages:
    """The messages in a text. Raises Unusable for a speaker whom no template has."""
    template = _template_of(text)
    if template is None:
        raise Unusable("no prompt", "text: no chat template that is known stands in it")
    before, *parts = re.split(template, text)
    messages = []
    before = _bare(before)
    if before and not before.startswith(PREAMBLE):
        messages.append({"role": "system", "content": before})
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        if speaker not in SPEAKERS:
            raise Unusable("wrong role", f"text: {speaker!r} is no role")
        content = _bare(said)
        role = SPEAKERS[speaker]
        # Alpaca's input stands below its instruction; nothing stands between [INST] and <<SYS>>.
        if speaker == "Input" and messages and content:
            messages[-1]["content"] += f"\n\n{content}"
        elif content:
            messages.append({"role": role, "content": content})
    return messages


def _template_of(text: str) -> str | None:
    """The first template by which both the user and the assistant speak."""
    for template in TEMPLATES:
        roles = {SPEAKERS.get(speaker) for speaker in re.findall(template, text)}
        if {"user", "assistant"} <= roles:
            return template
    return None


def _bare(text: str) -> str:
    """A text without the marks at both of its ends."""
    before = ""
    bare = text.strip()
    while bare != before:
        before = bare
        for mark in ENDS:
            bare = bare.removeprefix(mark).removesuffix(mark).strip()
    return bare
