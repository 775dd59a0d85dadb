"""Before the first step: which tokens carry loss, are the images there, is the policy its own reference."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.text import Text

from tunebook.data.images import ImageSwap, swap_images
from tunebook.models.image_input import TokenCounter
from tunebook.recipe.errors import UserError, shorten

AUDITED = 8  # rows that are looked at before the first step; the masks of two of them are shown
MARGINS = 64  # pairs whose margin is taken with other images too
KINDS: tuple[ImageSwap, ...] = ("true", "blank", "swapped")


def audit_masks(trainer: Any, tokenizer: Any) -> dict[str, Any]:
    """Which tokens will be trained on: counted in the first rows, two rows shown, before a step is made.

    Raises UserError when no token or every token of the rows carries loss, and what `audit_images` raises.
    """
    images = sees_images(trainer)
    batches = []
    if images:
        batches.append(trainer.data_collator(_first_rows(trainer)))
    else:
        # Row by row: Unsloth on a GPU pads nothing and makes a batch one long row. Prompts are tokenised.
        for row in _first_rows(trainer):
            row.pop("prompt", None)
            batches.append(trainer.data_collator([row]))
    rows: list[tuple[list[int], list[int], list[bool]]] = []
    for batch in batches:
        parts = (batch["input_ids"], batch["labels"], _no_padding(batch))
        rows += zip(*(part.tolist() for part in parts), strict=True)
    trained = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    tokens = sum(int(_no_padding(batch).sum()) for batch in batches)
    share = trained / max(1, tokens)  # no token at all is no token with loss

    console = Console()
    console.print(
        f"[bold]Mask audit[/bold]: {share:.0%} of the tokens of {len(rows)} rows carry loss "
        "([green]trained[/green], [dim]not trained[/dim])"
    )
    for ids, labels, real in rows[:2]:
        console.print(_coloured(tokenizer, ids, labels, real))
        turns = _trained_turns(tokenizer, ids, labels)
        if len(turns) > 1:
            for number, text in enumerate(turns, 1):
                console.print(Text(f"    trained turn {number}: {shorten(text, 100)}"))
    if share == 0:
        raise UserError(
            "mask audit: no token carries loss; the completions were cut off or are empty "
            "(raise model.max_seq_length, check the data)"
        )
    if share == 1:
        raise UserError(
            "mask audit: every token carries loss, the prompts too; "
            "rows need separate `prompt` and `completion` columns"
        )
    audit: dict[str, Any] = {"rows": len(rows), "trained_share": round(share, 4)}
    if images:
        audit |= audit_images(trainer, tokenizer, batches[0])
    return audit


def _trained_turns(tokenizer: Any, ids: list[int], labels: list[int]) -> list[str]:
    """The text of each run of tokens that carry loss."""
    turns: list[list[int]] = []
    before = -100
    for token, label in zip(ids, labels, strict=True):
        if label != -100 and before == -100:
            turns.append([])
        if label != -100:
            turns[-1].append(token)
        before = label
    return [tokenizer.decode(turn) for turn in turns]


def _no_padding(batch: Any) -> Any:
    """Which tokens of a batch could carry loss."""
    if "attention_mask" in batch:
        return batch["attention_mask"].bool()
    return batch["position_ids"] != 0  # TRL gives no loss to the tokens at which the positions start anew


def _coloured(tokenizer: Any, ids: list[int], labels: list[int], real: list[bool]) -> Text:
    text = Text("  ")
    image = getattr(tokenizer, "image_token_id", None)
    before = None
    for token, label, keep in zip(ids, labels, real, strict=True):
        # An image's tokens are all the same: one stands for them.
        if keep and not (token == image == before):
            text.append(tokenizer.decode([token]), style="green" if label != -100 else "dim")
        before = token
    return text


def audit_images(trainer: Any, processor: Any, batch: Any = None) -> dict[str, Any]:
    """In the first batch every image is there as pixels, and every row has the tokens that its images take.

    `batch`: the first rows, if they are collated already.

    Raises UserError when not: the model would be trained blind.
    """
    rows = _first_rows(trainer)
    counter = TokenCounter(processor)
    expected = [counter.soft(row["images"]) for row in rows]
    images = sum(len(row["images"]) for row in rows)
    if batch is None:
        batch = trainer.data_collator(rows)
    counts = (batch["input_ids"] == processor.image_token_id).sum(1).tolist()
    sides = len(counts) // len(rows)  # of pairs: the chosen rows, then the rejected ones
    problem = "" if sum(expected) else "row 0 has 0 image tokens, 0 are expected"
    for row, (count, tokens) in enumerate(zip(counts, expected * sides, strict=True)):
        if count != tokens and not problem:
            problem = f"row {row} has {count} image tokens, {tokens} are expected"
    if "pixel_values" not in batch:
        problem = "the batch has no pixel_values"
    if problem:
        raise UserError(
            f"image audit: {problem}; the model would not see the images "
            "(raise model.max_seq_length, check model.base)"
        )
    print(
        f"Image audit: {images} images in {len(rows)} rows, {sum(expected)} image tokens, "
        f"pixel_values {tuple(batch['pixel_values'].shape)}"
    )
    return {"rows": len(rows), "images": images, "image_tokens": sum(expected)}


def audit_step_0(trainer: Any, tokenizer: Any) -> dict[str, float]:
    """Before the first step policy and reference are the same model: sigmoid loss ln 2, margin 0.

    Raises UserError when they are not: training would start from a wrong reference.
    """
    if sees_images(trainer):
        audit_images(trainer, tokenizer)
    # As few at a time as in training, where the batch was chosen for the memory that there is.
    loss, metrics = _measured(trainer, _first_rows(trainer), trainer.args.per_device_train_batch_size)
    margin = metrics["rewards/margins"]
    chosen, rejected = metrics["rewards/chosen"], metrics["rewards/rejected"]
    print(
        f"Step-0 audit: loss {loss:.4f} (ln 2 = {math.log(2):.4f}), margin {margin:.4f}, "
        f"logps/chosen {metrics['logps/chosen']:.1f}"
    )
    # Written so that a NaN fails.
    same_loss = abs(loss - math.log(2)) <= 0.01
    if not same_loss or max(abs(chosen), abs(rejected)) > 0.01:
        raise UserError(
            f"step-0 audit: loss {loss:.4f} instead of ln 2, rewards {chosen:.3f} and {rejected:.3f} "
            "instead of 0: the reference is not the model that training starts from "
            "(wrong adapter, dropout, or other weights)"
        )
    return {"loss": loss, "margin": margin, "reward_chosen": chosen, "reward_rejected": rejected}


def image_margins(trainer: Any, rows: Any) -> dict[str, float]:
    """`rewards/margins` of pairs with their image, a blank one and another row's.

    They are the same in a policy that does not look.
    """
    rows = rows.select(range(min(len(rows), MARGINS)))
    size = trainer.args.per_device_eval_batch_size
    margins: dict[str, float] = {}
    for kind in KINDS:
        images = swap_images(kind, list(rows["images"]))
        pairs = [row | {"images": shown} for row, shown in zip(rows, images, strict=True)]
        margins[kind] = _measured(trainer, pairs, size)[1]["rewards/margins"]
    print(
        f"rewards/margins with the true image {margins['true']:.3f}, a blank one {margins['blank']:.3f}, "
        f"another row's {margins['swapped']:.3f}"
    )
    return margins


def sees_images(trainer: Any) -> bool:
    """Whether the trainer's rows have images; they are then tokenised batch by batch."""
    return "images" in (trainer.train_dataset.column_names or ())


def _first_rows(trainer: Any) -> list[dict[str, Any]]:
    """Copies of the first rows: a collator may change what it is given."""
    rows = trainer.train_dataset
    return [dict(rows[i]) for i in range(min(AUDITED, len(rows)))]


def _measured(trainer: Any, rows: list[dict[str, Any]], size: int) -> tuple[float, dict[str, float]]:
    """The plain sigmoid loss and the metrics of some rows, `size` at a time and without a step.

    The rows may be changed.
    """
    import torch

    plain = {
        "loss_types": ["sigmoid"],
        "loss_weights": [1.0],
        "use_weighting": False,
        "aux_loss_enabled": False,
    }
    before = {name: getattr(trainer, name) for name in plain}
    training = trainer.model.training
    vars(trainer).update(plain)
    trainer.model.eval()
    loss = 0.0
    metrics: dict[str, float] = {}
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        share = len(batch) / len(rows)
        inputs = trainer._prepare_inputs(trainer.data_collator(batch))
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss += share * float(trainer.compute_loss(trainer.model, inputs))
        for name, values in trainer._metrics["eval"].items():
            metrics[name] = metrics.get(name, 0.0) + share * values[-1]
        trainer._metrics["eval"].clear()
    vars(trainer).update(before)
    trainer.model.train(training)
    return loss, metrics
