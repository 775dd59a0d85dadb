"""A real model's completions as vLLM gives them: the next token, how likely a prompt is, a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunebook.models.adapters import adapter_of, use_adapter


def complete(model: Any, tokenizer: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that answers a request to `/v1/completions`, greedily, as the adapter that it names."""
    import torch

    def likely(ids: list[int]) -> Any:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        # A batch of one: what the harness sends.
        prompt = asked["prompt"]
        ids = prompt[0] if isinstance(prompt[0], list) else prompt
        with use_adapter(model, adapter_of(asked["model"])):
            if asked.get("echo"):
                return {"logprobs": _of_prompt(likely(ids), ids)}
            if asked["max_tokens"] == 1:
                top = likely(ids)[-1].topk(asked["logprobs"])
                named = {f"token_id:{i}": p for p, i in zip(*(part.tolist() for part in top), strict=True)}
                return {"logprobs": {"top_logprobs": [named]}}
            return {"text": _text(likely, tokenizer, list(ids), asked)}

    return answer


def _of_prompt(likely: Any, ids: list[int]) -> dict[str, Any]:
    """Of each token of the prompt but the first, and of one that was generated behind it."""
    values, best = [None], [None]
    for place, token in enumerate(ids[1:]):
        values.append(float(likely[place, token]))
        best.append({"best": float(likely[place].max())})
    return {"token_logprobs": [*values, 0.0], "top_logprobs": [*best, {"best": 0.0}]}


def _text(likely: Callable[[list[int]], Any], tokenizer: Any, ids: list[int], asked: dict[str, Any]) -> str:
    """Up to a token that ends a turn, or a text at which the request stops."""
    length = len(ids)
    while len(ids) < length + asked["max_tokens"]:
        token = int(likely(ids)[-1].argmax())
        if token in asked["stop_token_ids"]:
            break
        ids.append(token)
        text = tokenizer.decode(ids[length:])
        for stop in asked["stop"]:
            if stop in text:
                return text.split(stop)[0]
    return tokenizer.decode(ids[length:])
