"""Answers on a CPU, where a step costs by the row and reading the prompts takes half of the time."""

from __future__ import annotations

from typing import Any

from tunebook.models.cpu.shared_prefixes import PartialBatch
from tunebook.models.prefix import common_start


def read_prompts_once(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch for `generate` with a cache of all its prompts but their last tokens.

    Each prompt is read once, however many samples of it are in the batch, and what all prompts begin with
    (the system message) once for all.
    """
    import torch

    prompts = []
    for ids, seen in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        prompts.append(tuple(ids[seen.bool()].tolist()))
    distinct = sorted(set(prompts))
    # The first and the last in sorted order have the least in common.
    start = min(common_start(distinct[0], distinct[-1]), min(map(len, distinct)) - 1)

    batch = PartialBatch(model.get_decoder())
    if start:
        batch.compute([list(distinct[0][:start])])
    batch.take([0] * len(distinct))
    rests = [list(prompt[start:-1]) for prompt in distinct]
    if any(rests):
        batch.compute(rests)
    if batch.cache is None:  # every prompt is a single token
        return inputs
    batch.take([distinct.index(prompt) for prompt in prompts])

    last = torch.tensor([[prompt[-1]] for prompt in prompts])
    return {
        "input_ids": torch.cat([batch.ids, last], 1),
        "attention_mask": torch.cat([batch.seen, torch.ones_like(last)], 1),
        "past_key_values": batch.cache,
    }


def stop_at_half(ends: set[int]) -> Any:
    """Stops generation when half of the rows have ended: the batch goes on without them."""
    import torch
    from transformers import StoppingCriteria

    class HalfDone(StoppingCriteria):  # type: ignore[misc]
        done: Any = False

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            end_tokens = torch.tensor(sorted(ends), device=input_ids.device)
            self.done = torch.isin(input_ids[:, -1], end_tokens) | self.done
            return torch.full_like(self.done, bool(2 * self.done.sum() >= len(self.done)))

    return HalfDone()
