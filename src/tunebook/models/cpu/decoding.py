"""Answers on a CPU, where a step costs by the row and reading the prompts takes half of the time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

from tunebook.models.backend import trim_heap
from tunebook.models.cpu.shared_prefixes import PartialBatch
from tunebook.models.prefix import common_start

MOST_PARTS = 4
"""More threads would wait for Python's lock."""

LEAST_ROWS = 32
"""With fewer rows to a part, reading the weights once for each part costs more than is gained."""

Decode = Callable[[dict[str, Any], list[Any], threading.Event], list[list[int]]]
"""Inputs of some rows, their generators and what tells it to stop: the new tokens of each row."""


def decode_in_parts(decode: Decode, inputs: dict[str, Any], generators: list[Any]) -> list[list[int]]:
    """The rows of a batch in parts, each in a thread with its share of the cores: a fifth faster on two.

    A product of matrices that several cores share ends with its slowest; the parts need not wait for each
    other. What ends this thread (Ctrl-C) ends the others at their next token.

    Returns the new tokens of each row, in order.
    """
    import torch

    threads = torch.get_num_threads()
    parts = min(threads, MOST_PARTS, len(generators) // LEAST_ROWS)
    stopped = threading.Event()
    if parts < 2:
        return decode(inputs, generators, stopped)

    def decode_part(rows: slice) -> list[list[int]]:
        torch.set_num_threads(threads // parts)  # of this thread
        with torch.inference_mode():  # another thread's does not count here
            of_part = {name: tensor[rows] for name, tensor in inputs.items()}
            return decode(of_part, generators[rows], stopped)

    size = math.ceil(len(generators) / parts)
    decoded = []
    try:
        with ThreadPoolExecutor(parts) as pool:
            # Rows that follow each other: samples of one prompt stay together, and it is read once.
            starts = range(0, len(generators), size)
            running = [pool.submit(decode_part, slice(start, start + size)) for start in starts]
            try:
                for part in running:
                    decoded += part.result()
            finally:
                stopped.set()
    finally:
        torch.set_num_threads(threads)  # of threads to come
        # What two threads have freed lies between what the other one held: a later batch finds no room there.
        trim_heap()
    return decoded


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


def stop_at_half(ends: set[int], stopped: threading.Event) -> Any:
    """Stops generation when half of the rows have ended: the batch goes on without them.

    Raises CancelledError when `stopped` is set: nobody waits for the rest.
    """
    import torch
    from transformers import StoppingCriteria

    class HalfDone(StoppingCriteria):  # type: ignore[misc]
        done: Any = False

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            if stopped.is_set():
                raise CancelledError
            end_tokens = torch.tensor(sorted(ends), device=input_ids.device)
            self.done = torch.isin(input_ids[:, -1], end_tokens) | self.done
            return torch.full_like(self.done, bool(2 * self.done.sum() >= len(self.done)))

    return HalfDone()
