"""Which of several answers a model finds the likeliest: cheap, and it depends on no form of answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunebook.generation.local import Local, batches
from tunebook.models.chat_template import render, text_tokenizer
from tunebook.models.cpu.shared_prefixes import PartialBatch, only_looks_back
from tunebook.models.prefix import common_start
from tunebook.runs.bars import Bar


def choice_probabilities(
    source: Local, items: list[dict[str, Any]], batch_size: int, label: str
) -> Iterator[dict[int, list[float]]]:
    """The probabilities of each item's choices, which add up to 1, as {index: probabilities} batch by batch.

    Args:
        items: With `prompt` and `choices`, and perhaps the `lead` that all choices follow.
        batch_size: Items at a time.
    """
    import torch

    tokenizer = text_tokenizer(source.tokenizer)
    answers = []  # of each item, the tokens of its prompt with each choice
    starts = []  # and where the choices begin
    for item in items:
        before = render(source.tokenizer, item["prompt"], 0) + item.get("lead", "")
        # With the end of turn: an answer that breaks off is another one.
        whole = [before + choice + tokenizer.eos_token for choice in item["choices"]]
        prompt, *ids = tokenizer([before, *whole], add_special_tokens=False)["input_ids"]
        answers.append(ids)
        # The last token of the prompt may be another one together with what follows.
        starts.append(min(common_start(prompt, answer) for answer in ids))
    bar = Bar(total=len(items), desc=label, unit="item")
    for batch in batches(starts, batch_size):
        logps = choice_logps(source.model, [answers[i] for i in batch], [starts[i] for i in batch])
        probabilities = [torch.tensor(of_item).softmax(0).tolist() for of_item in logps]
        yield dict(zip(batch, probabilities, strict=True))
        bar.update(len(batch))
    bar.close()


def choice_logps(model: Any, answers: list[list[list[int]]], starts: list[int]) -> list[list[float]]:
    """The log-probability of each choice of each item, given the tokens before it.

    Args:
        answers: Of each item the tokens of prompt and choice, a list for each choice.
        starts: Of each item where the choices begin.
    """
    import torch

    read = _read_prompts_once if only_looks_back(model) else _read_whole
    tokens = []
    lengths = []
    for of_item, start in zip(answers, starts, strict=True):
        for ids in of_item:
            tokens += ids[start:]
            lengths.append(len(ids) - start)
    with torch.inference_mode():
        logps = read(model, answers, starts).float().log_softmax(-1)
        of_tokens = logps[range(len(tokens)), tokens]
    sums = iter([float(part.sum()) for part in of_tokens.split(lengths)])
    return [[next(sums) for _ in of_item] for of_item in answers]


def _read_whole(model: Any, answers: list[list[list[int]]], starts: list[int]) -> Any:
    """What the model says of the tokens of all choices (tokens, vocabulary), each read with its prompt."""
    import torch

    rows: list[list[int]] = []
    lengths = []
    for of_item, start in zip(answers, starts, strict=True):
        rows += of_item
        lengths += [len(ids) - start for ids in of_item]
    # Padding is on the left, so that the ends of all rows stand below one another.
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
    seen = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    logits = model(input_ids=ids, attention_mask=seen, logits_to_keep=max(lengths) + 1).logits
    # The logits at a token are of the next one.
    asked = [row[-length - 1 : -1] for row, length in zip(logits, lengths, strict=True)]
    return torch.cat(asked)


def _read_prompts_once(model: Any, answers: list[list[list[int]]], starts: list[int]) -> Any:
    """The same, with the prompt of each item read once for all its choices: half of the time on a CPU."""
    import torch

    batch = PartialBatch(model.get_decoder())
    batch.take([0] * len(answers))
    # The last token of a prompt is read with the choices: it says what the first of their tokens may be.
    batch.compute([of_item[0][: start - 1] for of_item, start in zip(answers, starts, strict=True)])
    rests = []
    places = []
    for place, (of_item, start) in enumerate(zip(answers, starts, strict=True)):
        rests += [ids[start - 1 :] for ids in of_item]
        places += [place] * len(of_item)
    batch.take(places)
    hidden = batch.compute(rests)
    asked = [row[-len(rest) : -1] for row, rest in zip(hidden, rests, strict=True)]
    return model.get_output_embeddings()(torch.cat(asked))
