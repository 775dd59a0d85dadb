"""Where the assistant's turns lie in a rendered conversation.

The text of a whole conversation is searched for what the chat template writes before and after an answer.
Prefixes of a conversation need not be prefixes of its text: Qwen3's template drops earlier turns' reasoning.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

from tunebook.recipe.errors import UserError

# A conversation of texts that no template writes by itself.
QUESTIONS = ("qqquestiononeqqq", "qqquestiontwoqqq")
ANSWERS = ("aaansweroneaaa", "aaanswertwoaaa")
THOUGHT_END = "</think>"
"""What ends the reasoning that stands in an answer's own text."""


NO_LOSS = -100
"""The label that PyTorch's cross entropy leaves out."""


@dataclass(frozen=True)
class TurnMarks:
    """What a chat template writes around an answer."""

    before: str
    """The header of the assistant's turn, such as `<|im_start|>assistant` and a line break."""
    after: str
    """The end of a turn, such as `<|im_end|>`."""

    @classmethod
    def of(cls, tokenizer: Any) -> TurnMarks:
        """The marks of a tokenizer's chat template.

        Raises ValueError for a template in which turns cannot be told apart, such as GLM's, and UserError for
        one that leaves turns out.
        """
        messages = []
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        if ANSWERS[1] in whole and ANSWERS[0] not in whole:
            raise UserError("the chat template drops earlier answers: set another model.chat_template")
        asked = tokenizer.apply_chat_template(messages[:1], tokenize=False)
        opened = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        # What the first answer's header and the generation prompt share: of a model that thinks, the latter
        # opens reasoning too, which earlier turns have not.
        header = _between(whole, QUESTIONS[0], ANSWERS[0])
        shared = _common_start(header, opened.partition(QUESTIONS[0])[2])
        # Without the end of the user's turn, where that is not all that stands there (Mistral's).
        before = shared.removeprefix(asked.partition(QUESTIONS[0])[2]) or shared
        after = whole.partition(ANSWERS[1])[2].strip()
        marks = cls(before, after)
        if not before.strip() or not after or before in after or not marks._tell_apart(whole):
            raise ValueError(
                "the chat template writes nothing by which the assistant's turns could be told apart"
            )
        return marks

    def _tell_apart(self, whole: str) -> bool:
        """Whether each answer of the conversation above, and no question, lies in a span of its own."""
        turns = [whole[slice(*span)] for span in self.spans(whole)]
        if len(turns) != len(ANSWERS) or any(question in "".join(turns) for question in QUESTIONS):
            return False
        return ANSWERS[0] in turns[0] and ANSWERS[1] in turns[1]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Of each assistant turn in a rendered conversation: from after its header to behind its end mark.

        Rows whose text holds a control token are put aside before, so nothing a person wrote is found here.
        """
        spans: list[tuple[int, int]] = []
        end = 0
        while True:
            start = text.find(self.before, end)
            if start < 0:
                return spans
            start += len(self.before)
            end = text.find(self.after, start)
            end = len(text) if end < 0 else end + len(self.after)
            spans.append((start, end))


@dataclass(frozen=True)
class Conversation:
    """A conversation with all that its chat template may write: tools, their calls, reasoning."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None

    @classmethod
    def of(cls, row: dict[str, Any]) -> Conversation:
        """That of a row of the data: its `chat`, where it has one, else prompt and completion."""
        chat = row.get("chat")
        if chat:
            content = json.loads(chat)
            return cls(content["messages"], content.get("tools"))
        return cls([*row["prompt"], *row["completion"]])

    def render(self, tokenizer: Any) -> str:
        """Its text by a tokenizer's chat template."""
        # A weight is for us; some templates write every key of a message.
        messages = []
        for message in self.messages:
            messages.append({key: value for key, value in message.items() if key != "weight"})
        return str(tokenizer.apply_chat_template(messages, tools=self.tools, tokenize=False))

    def drops_reasoning(self, tokenizer: Any) -> bool:
        """Whether a turn's reasoning, apart or in its text, is not in the rendered conversation."""
        thoughts = []
        for message in self.messages:
            if message["role"] == "assistant":
                in_text = str(message.get("content") or "").rpartition(THOUGHT_END)[0]
                thoughts.append(in_text.rpartition("<think>")[2].strip())
                thoughts.append(str(message.get("reasoning_content") or "").strip())
        if not any(thoughts):
            return False
        text = self.render(tokenizer)
        return any(thought not in text for thought in thoughts)

    def trained_turns(self, train_on: str) -> list[bool]:
        """Of each assistant turn whether it carries loss.

        Args:
            train_on: `last` or `all`; a turn of weight 0 carries none either way.
        """
        answers = [message for message in self.messages if message["role"] == "assistant"]
        trained = []
        for number, message in enumerate(answers, 1):
            is_chosen = train_on == "all" or number == len(answers)
            trained.append(is_chosen and message.get("weight", 1) != 0)
        return trained


def trained_spans(
    row: dict[str, Any], tokenizer: Any, marks: TurnMarks, train_on: str
) -> list[tuple[int, int]]:
    """The parts of a row's rendered text that carry loss, in characters.

    Raises ValueError that says why when the template shows fewer turns than the row has, or drops an answer.
    """
    conversation = Conversation.of(row)
    text = conversation.render(tokenizer)
    spans = marks.spans(text)
    trained = conversation.trained_turns(train_on)
    if len(spans) != len(trained):
        raise ValueError(f"the row has {len(trained)} assistant turns, the chat template shows {len(spans)}")
    # A template may show a turn and leave out what was said in it.
    answers = [message for message in conversation.messages if message["role"] == "assistant"]
    kept = []
    for span, message, is_trained in zip(spans, answers, trained, strict=True):
        if not is_trained:
            continue
        turn = text[slice(*span)]
        for part in _parts(message):
            if part not in turn:
                raise ValueError(f"the chat template drops {part[:40]!r} of an assistant turn")
        kept.append(span)
    return kept


def labelled(row: dict[str, Any], tokenizer: Any, marks: TurnMarks, train_on: str) -> dict[str, list[int]]:
    """Token ids and labels of one row. A token carries loss when it begins inside a trained turn."""
    text = Conversation.of(row).render(tokenizer)
    try:
        spans = trained_spans(row, tokenizer, marks, train_on)
    except ValueError as error:
        raise UserError(
            f"{row['source_id']}: {error}; set data.train_on=last or another chat template"
        ) from None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = []
    for token, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        is_trained = any(first <= start < end for first, end in spans)
        labels.append(token if is_trained else NO_LOSS)
    return {"input_ids": encoded["input_ids"], "labels": labels}


def _parts(message: dict[str, Any]) -> list[str]:
    """What a template must show of an assistant's message: its text, and the tools that it calls with what.

    Reasoning is none of it: templates take it out of an answer's text, and drop that of earlier turns.
    """
    parts = [str(message.get("content") or "").rpartition(THOUGHT_END)[2].strip()]
    for call in message.get("tool_calls") or []:
        parts.append(call["function"]["name"])
        arguments = call["function"]["arguments"]
        if isinstance(arguments, dict):
            parts += arguments
    return [part for part in parts if part]


def _common_start(first: str, second: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(one for one, _ in same)


def _between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition(end)[0]
