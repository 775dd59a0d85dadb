"""One answer in pieces, as it is generated."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import jinja2

from tunebook.generation.local import NO_EYES, Local, sees_images, to_device
from tunebook.models import chat_template
from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError, first_line


@dataclass(frozen=True)
class Drawing:
    """How one streamed answer is drawn. At temperature 0 greedily, and `top_p` has no effect."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def stream(
    source: Local, messages: Messages, drawing: Drawing, shown: dict[int, Any] | None = None
) -> Generator[str]:
    """One answer in pieces as it is generated; closing the iterator stops it. `shown` are images (PIL) by the number of the message
    that they go with.

    Raises UserError for an image when the model sees none, and for a conversation that fills the model's context.
    """
    import torch
    from transformers import TextIteratorStreamer

    inputs = _chat_inputs(source, messages, shown or {})
    length, limit = (
        inputs["input_ids"].shape[1],
        getattr(source.model.config.get_text_config(), "max_position_embeddings", None),
    )
    if limit and length >= limit:
        raise UserError(f"the conversation has {length} tokens, the model reads {limit}: start a new one")
    pieces = TextIteratorStreamer(
        chat_template.text_tokenizer(source.tokenizer), skip_prompt=True, skip_special_tokens=True
    )
    stop, failed = threading.Event(), []
    sampled = (
        {"do_sample": True, "temperature": drawing.temperature, "top_p": drawing.top_p, "top_k": 0}
        if drawing.temperature
        else {"do_sample": False}
    )

    def work() -> None:
        try:
            torch.manual_seed(drawing.seed)
            with torch.inference_mode():
                source.model.generate(
                    **inputs,
                    **sampled,
                    max_new_tokens=drawing.max_new_tokens,
                    streamer=pieces,
                    stopping_criteria=[_stop_when(stop)],
                )
        except Exception as error:
            failed.append(error)
            pieces.end()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield from (piece for piece in pieces if piece)
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def _chat_inputs(source: Local, messages: Messages, shown: dict[int, Any]) -> Any:
    given: list[dict[str, Any]] = list(messages)
    if sees_images(source):  # a processor wants every content as a list of parts
        given = [
            {
                "role": m["role"],
                "content": [{"type": "image", "image": shown[i]}] * (i in shown)
                + [{"type": "text", "text": m["content"]}],
            }
            for i, m in enumerate(messages)
        ]
    elif shown:
        raise UserError(NO_EYES)
    try:
        inputs = source.tokenizer.apply_chat_template(
            given, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
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
