"""Which of several answers a model finds the likeliest: cheap, and it depends on no form of answer."""

from __future__ import annotations

from typing import Any

from tunebook.generation.local import Local, batches, encode
from tunebook.models.chat_template import render, text_tokenizer
from tunebook.models.prefix import common_start
from tunebook.runs.bars import Bar


def choice_probabilities(
    source: Local, items: list[dict[str, Any]], batch_size: int, label: str
) -> list[list[float]]:
    """Of each item the probabilities of its choices, which add up to 1.

    Args:
        items: With `prompt` and `choices`, and perhaps the `lead` that all choices follow.
    """
    import torch

    texts = []
    lengths = []  # of what all choices of an item have in common, in tokens
    tokenizer = text_tokenizer(source.tokenizer)
    for item in items:
        before = render(source.tokenizer, item["prompt"], 0) + item.get("lead", "")
        # With the end of turn: an answer that breaks off is another one.
        whole = [before + choice + tokenizer.eos_token for choice in item["choices"]]
        ids = tokenizer([before, *whole], add_special_tokens=False)["input_ids"]
        lengths += [common_start(ids[0], answer) for answer in ids[1:]]
        texts += whole
    logps = answer_logps(source, texts, lengths, batch_size, label)
    probabilities = []
    start = 0
    for item in items:
        end = start + len(item["choices"])
        probabilities.append(torch.tensor(logps[start:end]).softmax(0).tolist())
        start = end
    return probabilities


def answer_logps(
    source: Local, texts: list[str], starts: list[int], batch_size: int, label: str
) -> list[float]:
    """The log-probability of each text from the token of that number on."""
    import torch

    ids = text_tokenizer(source.tokenizer)(texts, add_special_tokens=False)["input_ids"]
    logps = [0.0] * len(texts)
    bar = Bar(total=len(texts), desc=label, unit="choice")
    for batch in batches([len(row) for row in ids], batch_size):
        inputs = encode(source, [texts[i] for i in batch], [[] for _ in batch])
        # Padding is on the left, so that the ends of all texts stand below one another. The logits at a token
        # say what comes after it.
        longest = max(len(ids[i]) - starts[i] for i in batch)
        with torch.inference_mode():
            logits = source.model(**inputs, logits_to_keep=longest + 1).logits[:, -longest - 1 : -1]
            tokens = inputs["input_ids"][:, -longest:, None]
            of_tokens = logits.float().log_softmax(-1).gather(-1, tokens)[..., 0]
        for row, i in enumerate(batch):
            logps[i] = float(of_tokens[row, starts[i] - len(ids[i]) :].sum())
        bar.update(len(batch))
    bar.close()
    return logps
