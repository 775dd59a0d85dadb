"""How likely held-out answers are to a model: what can be measured where no answer can be checked.

The loss is the mean of -log p over the tokens of the answers (their end of turn included), given their
prompts; perplexity is e to the loss.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tunebook.data.rows import evenly, images_of
from tunebook.data.storage import load, read_rows
from tunebook.evaluation.statistics import column, mcnemar, pairs_of_models, ratio_interval, wilson
from tunebook.generation.generate import AnswerFile, read_records
from tunebook.generation.local import Local, encode
from tunebook.models.chat_template import Messages, render, text_tokenizer
from tunebook.models.turns import NO_LOSS, TurnMarks, labelled
from tunebook.recipe.sections import Recipe
from tunebook.runs.bars import Bar

ANSWERED = 100
"""Items that are answered too, for their lengths and to be read. The loss is taken of all."""

LOSSES = "losses.jsonl"
"""In a stage's folder: of each item the tokens of its answer and the sum of their -log p, `nats`."""


def held_out_answers(recipe: Recipe, limit: int | None) -> list[dict[str, Any]]:
    """Held-out prompts with their answers: rows of `evaluate.split`, or of DPO alone the pairs of `val`.

    A pair's answer is its chosen one; it brings `rejected` along. Empty when nothing is held out.
    """
    if recipe.data.sources:
        return list(evenly(load(recipe, recipe.evaluate.split), limit))
    path = recipe.run_dir / "pairs" / "val.parquet"
    if not path.exists():
        return []
    items = []
    for pair in read_rows(recipe, path):
        of_data = {
            "completion": pair["chosen"],
            "gold": None,
            "slice": None,
            "group": None,
            "difficulty": None,
        }
        items.append({**pair, **of_data})
    return list(evenly(items, limit))


def measure_losses(
    source: Local, items: list[dict[str, Any]], folder: Path, label: str, train_on: str = "all"
) -> None:
    """Write the `nats` and `tokens` of each item's answer to `folder`, and those of its rejected one.

    An interrupted run goes on where it was.

    Args:
        train_on: Of rows with tools, the turns that count: those that carry loss in training.
    """
    with AnswerFile(folder / LOSSES) as file:
        done = set(file)
        for i, item in enumerate(Bar(items, desc=f"{label} loss", unit="row")):
            if i in done:
                continue
            if item.get("chat"):
                nats, tokens = conversation_loss(source, item, train_on)
            else:
                nats, tokens = answer_loss(source, item["prompt"], item["completion"], images_of(item))
            record = {"index": i, "source_id": item["source_id"], "nats": nats, "tokens": tokens}
            if "rejected" in item:
                record["rejected_nats"], _ = answer_loss(
                    source, item["prompt"], item["rejected"], images_of(item)
                )
            file.write([record])


def conversation_loss(source: Local, item: dict[str, Any], train_on: str) -> tuple[float, int]:
    """The same as `answer_loss` of all turns of a conversation with tools that carry loss."""
    import torch

    tokenizer = text_tokenizer(source.tokenizer)
    row = labelled(item, tokenizer, TurnMarks.of(tokenizer), train_on)
    ids = torch.tensor([row["input_ids"]], device=source.model.device)
    labels = torch.tensor(row["labels"], device=source.model.device)
    with torch.inference_mode():
        logits = source.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].float()
        nats = torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum", ignore_index=NO_LOSS)
    return float(nats), int((labels[1:] != NO_LOSS).sum())


def answer_loss(source: Local, prompt: Messages, answer: Messages, images: list[Any]) -> tuple[float, int]:
    """The sum of -log p (natural logarithm) over an answer's tokens, and how many they are.

    One row at a time and unpadded: nothing depends on what else is in a batch.
    """
    import torch

    before = render(source.tokenizer, prompt, len(images))
    whole = render(source.tokenizer, prompt + answer, len(images), answer_next=False)
    inputs = encode(source, [whole], [images])
    ids = inputs["input_ids"][0]
    start = encode(source, [before], [images])["input_ids"].shape[1]
    with torch.inference_mode():
        # The logits at a token say what comes after it.
        logits = source.model(**inputs).logits[0, start - 1 : -1].float()
        nats = torch.nn.functional.cross_entropy(logits, ids[start:], reduction="sum")
    return float(nats), len(ids) - start


def summarise_losses(folder: Path) -> dict[str, Any]:
    """Loss per token and perplexity of a stage over all items, with a bootstrap interval over items."""
    records = read_records(folder / LOSSES)
    nats, tokens = column(records, "nats"), column(records, "tokens")
    loss = sum(nats) / sum(tokens)
    low, high = ratio_interval(nats, tokens)
    return {
        "n": len(records),
        "tokens": sum(tokens),
        "loss": loss,
        "loss_interval": [low, high],
        "perplexity": math.exp(loss),
        "perplexity_interval": [math.exp(low), math.exp(high)],
    }


def compare_losses(folders: dict[str, Path]) -> list[dict[str, Any]]:
    """Each model against the one before it, and the last against the first; a lower loss is better.

    Returns:
        Of each step `difference` of the losses per token with its `interval` (paired bootstrap over items),
        `lower` and `higher`: how many items' losses fell and rose, and `p` of the sign test. Of pairs also
        `prefers`: the share of pairs in which chosen gained more than rejected, with its Wilson interval.
    """
    # By item, in one order: `read_records` sorts by the item's number.
    records = {name: read_records(folder / LOSSES) for name, folder in folders.items()}
    comparisons = []
    for first, second in pairs_of_models(list(records)):
        before, after = records[first], records[second]
        change = [new["nats"] - old["nats"] for old, new in zip(before, after, strict=True)]
        tokens = column(before, "tokens")
        lower = sum(difference < 0 for difference in change)
        higher = sum(difference > 0 for difference in change)
        compared = {
            "first": first,
            "second": second,
            "n": len(change),
            "difference": sum(change) / sum(tokens),
            "interval": ratio_interval(change, tokens),
            "lower": lower,
            "higher": higher,
            "p": mcnemar(lower, higher),
        }
        if before and "rejected_nats" in before[0]:
            # Above 0: chosen became likelier than rejected, measured from the first model on.
            gains = 0
            for old, new, chosen_change in zip(before, after, change, strict=True):
                gains += chosen_change < new["rejected_nats"] - old["rejected_nats"]
            compared["prefers"] = gains / len(change)
            compared["prefers_interval"] = wilson(gains, len(change))
        comparisons.append(compared)
    return comparisons
