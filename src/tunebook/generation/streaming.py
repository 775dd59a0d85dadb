"""One answer in pieces, as it is generated."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import jinja2

from tunebook.generation.local import NO_EYES, Local, sees_images, to_device
from tunebook.models.chat_template import Messages, text_tokenizer
from tunebook.recipe.errors import UserError, first_line


@dataclass(frozen=True)
class Drawing:
    """How one streamed answer is drawn. At temperature 0 greedily, and `top_p` has no effect."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def stream(
    source: Local, messages: Messages, drawing: Drawing, images: dict[int, Any] | None = None
) -> Generator[str]:
    """One answer in pieces as it is generated; closing the iterator stops it.

    Args:
        images: PIL images by the number of the message that they go with.

    Raises UserError for an image when the model sees none, and for a conversation that fills its context.
    """
    import torch
    from transformers import TextIteratorStreamer

    inputs = _chat_inputs(source, messages, images or {})
    length = inputs["input_ids"].shape[1]
    limit = getattr(source.model.config.get_text_config(), "max_position_embeddings", None)
    if limit and length >= limit:
        raise UserError(f"the conversation has {length} tokens, the model reads {limit}: start a new one")

    # The other settings are off: what is drawn depends on temperature and top_p alone.
    options: dict[str, Any] = {"do_sample": False}
    if drawing.temperature:
        options = {"do_sample": True, "temperature": drawing.temperature, "top_p": drawing.top_p, "top_k": 0}
    pieces = TextIteratorStreamer(
        text_tokenizer(source.tokenizer), skip_prompt=True, skip_special_tokens=True
    )
    stop = threading.Event()
    failures: list[Exception] = []

    # `generate` returns when the answer is whole: it runs in a thread, and the streamer hands on the pieces.
    def work() -> None:
        try:
            torch.manual_seed(drawing.seed)
            with torch.inference_mode():
                source.model.generate(
                    **inputs,
                    **options,
                    max_new_tokens=drawing.max_new_tokens,
                    streamer=pieces,
                    stopping_criteria=[_stop_when(stop)],
                )
        except Exception as error:
            # Raised by the reader's side; without an end it would wait for pieces for ever.
            failures.append(error)
            pieces.end()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for piece in pieces:
            if piece:
                yield piece
    finally:
        # Also when the reader closes the iterator in the middle of an answer.
        stop.set()
        thread.join()
    if failures:
        raise failures[0]


def _chat_inputs(source: Local, messages: Messages, images: dict[int, Any]) -> dict[str, Any]:
    conversation: list[dict[str, Any]] = list(messages)
    if sees_images(source):
        conversation = []
        for i, message in enumerate(messages):  # a processor wants every content as a list of parts
            parts: list[dict[str, Any]] = [{"type": "text", "text": message["content"]}]
            if i in images:
                parts.insert(0, {"type": "image", "image": images[i]})
            conversation.append({"role": message["role"], "content": parts})
    elif images:
        raise UserError(NO_EYES)
    try:
        inputs = source.tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    except jinja2.TemplateError as error:
        raise UserError(f"the model's chat template refuses this conversation: {first_line(error)}") from None
    return to_device(source.model, inputs)


def _stop_when(event: threading.Event) -> Any:
    import torch
    from transformers import StoppingCriteria

    class StopWhen(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.full((len(input_ids),), event.is_set(), device=input_ids.device)

    return StopWhen()
