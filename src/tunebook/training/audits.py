"""Before the first step: which tokens carry loss, and whether the images are there."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.text import Text

from tunebook.data.images import Instead, instead
from tunebook.models.image_input import TokenCounter
from tunebook.recipe.errors import UserError

AUDITED = 8
"""Rows whose masks are counted before the first step; two of them are shown."""


def sees_images(trainer: Any) -> bool:
    """Whether the trainer's rows have images; they are then tokenised batch by batch."""
    return "images" in (trainer.train_dataset.column_names or ())


def audit_images(trainer: Any, processor: Any, batch: Any = None) -> dict[str, Any]:
    """In the first batch every image is there as pixels, and every row has the tokens that its images take. `batch`: the first rows,
    if they are collated already.

    Raises UserError when not: the model would be trained blind.
    """
    rows = [trainer.train_dataset[i] for i in range(min(AUDITED, len(trainer.train_dataset)))]
    paths, counter = [row["images"] for row in rows], TokenCounter(processor)
    batch = batch if batch is not None else trainer.data_collator([dict(row) for row in rows])
    found = (batch["input_ids"] == processor.image_token_id).sum(1).tolist()
    twice = len(found) // len(rows)  # chosen and rejected
    wanted = [counter.soft(shown) for shown in paths] * twice
    pixels = tuple(batch["pixel_values"].shape) if "pixel_values" in batch else None
    if pixels is None or found != wanted or not sum(wanted):
        row = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b), 0)
        why = (
            f"row {row} has {found[row]} image tokens, {wanted[row]} are expected"
            if pixels
            else "the batch has no pixel_values"
        )
        raise UserError(
            f"image audit: {why}; the model would not see the images (raise model.max_seq_length, check model.base)"
        )
    audit = {"rows": len(rows), "images": sum(map(len, paths)), "image_tokens": sum(wanted) // twice}
    print(
        f"Image audit: {audit['images']} images in {len(rows)} rows, {audit['image_tokens']} image tokens, pixel_values {pixels}"
    )
    return audit


def audit_mask(trainer: Any, tokenizer: Any) -> dict[str, Any]:
    """Which tokens will be trained on: counted in the first rows, two rows shown, before a step is made.

    Raises UserError when no token or every token of the rows carries loss.
    """
    rows, images = (
        trainer.train_dataset.select(range(min(AUDITED, len(trainer.train_dataset)))),
        sees_images(trainer),
    )
    # Text row by row: Unsloth on a GPU pads nothing and makes a batch one long row.
    parts = [[row] for row in rows] if not images else [list(rows)]
    batches = [
        trainer.data_collator([{k: v for k, v in row.items() if images or k != "prompt"} for row in part])
        for part in parts
    ]
    ids, labels = ([row for batch in batches for row in batch[k].tolist()] for k in ("input_ids", "labels"))
    real = [row for batch in batches for row in _there(batch).tolist()]
    trained = sum(label != -100 for row in labels for label in row)
    share = trained / sum(map(sum, real))
    console = Console()
    console.print(
        f"[bold]Mask audit[/bold]: {share:.0%} of the tokens of {len(ids)} rows carry loss ([green]trained[/green], [dim]not trained[/dim])"
    )
    for row in range(min(2, len(ids))):
        console.print(_coloured(tokenizer, ids[row], labels[row], real[row]))
    if share == 0:
        raise UserError(
            "mask audit: no token carries loss; the completions were cut off or are empty (raise model.max_seq_length, check the data)"
        )
    if share == 1:
        raise UserError(
            "mask audit: every token carries loss, the prompts too; rows need separate `prompt` and `completion` columns"
        )
    return {"rows": len(ids), "trained_share": round(share, 4)} | (
        audit_images(trainer, tokenizer, batches[0]) if images else {}
    )


def _there(batch: Any) -> Any:
    """Which tokens of a batch could carry loss: those that are no padding. Without padding there is no attention mask, and TRL gives no
    loss to the tokens at which the positions start anew."""
    return batch["attention_mask"] if "attention_mask" in batch else batch["position_ids"] != 0


def _coloured(tokenizer: Any, ids: list[int], labels: list[int], real: list[int]) -> Text:
    text, image = Text("  "), getattr(tokenizer, "image_token_id", None)
    for before, token, label, keep in zip([None, *ids], ids, labels, real, strict=False):
        if keep and not (token == image == before):  # an image's tokens are all the same: one stands for them
            text.append(tokenizer.decode([token]), style="green" if label != -100 else "dim")
    return text


MARGINS = 64
"""Pairs whose margin is taken with other images too."""


KINDS: tuple[Instead, ...] = ("true", "blank", "swapped")


def audit_step_0(trainer: Any) -> dict[str, float]:
    """Before the first step policy and reference are the same model: the sigmoid loss is ln 2 and the margin 0.

    Raises UserError when they are not; training would start from a wrong reference.
    """
    loss, seen = _measured(
        trainer, [trainer.train_dataset[i] for i in range(min(AUDITED, len(trainer.train_dataset)))]
    )
    found = {
        "loss": loss,
        "margin": seen["rewards/margins"],
        "reward_chosen": seen["rewards/chosen"],
        "reward_rejected": seen["rewards/rejected"],
    }
    print(
        f"Step-0 audit: loss {loss:.4f} (ln 2 = {math.log(2):.4f}), margin {found['margin']:.4f}, logps/chosen {seen['logps/chosen']:.1f}"
    )
    if (
        not abs(loss - math.log(2)) <= 0.01
        or max(abs(found["reward_chosen"]), abs(found["reward_rejected"])) > 0.01
    ):
        raise UserError(
            f"step-0 audit: loss {loss:.4f} instead of ln 2, rewards {found['reward_chosen']:.3f} and {found['reward_rejected']:.3f} instead of 0: "
            "the reference is not the model that training starts from (wrong adapter, dropout, or other weights)"
        )
    return found


def image_margins(trainer: Any, rows: Any) -> dict[str, float]:
    """`rewards/margins` of pairs with their image, a blank one and another row's: a policy that does not look has the same each time."""
    rows = rows.select(range(min(len(rows), MARGINS)))
    size = trainer.args.per_device_eval_batch_size
    out: dict[str, float] = {}
    for kind in KINDS:
        shown = [
            row | {"images": images}
            for row, images in zip(rows, instead(kind, list(rows["images"])), strict=True)
        ]
        batches = [shown[i : i + size] for i in range(0, len(shown), size)]
        out[kind] = sum(
            _measured(trainer, batch)[1]["rewards/margins"] * len(batch) for batch in batches
        ) / len(shown)
    print(
        "rewards/margins with the true image {true:.3f}, a blank one {blank:.3f}, another row's {swapped:.3f}".format(
            **out
        )
    )
    return out


def _measured(trainer: Any, rows: list[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """The sigmoid loss and the metrics of some rows, without a step. What would be weighted or added is left out."""
    import torch

    inputs = trainer._prepare_inputs(trainer.data_collator([dict(row) for row in rows]))
    plain = {
        "loss_types": ["sigmoid"],
        "loss_weights": [1.0],
        "use_weighting": False,
        "aux_loss_enabled": False,
    }
    kept, training = {name: getattr(trainer, name) for name in plain}, trainer.model.training
    vars(trainer).update(plain)
    trainer.model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        loss = float(trainer.compute_loss(trainer.model, inputs))
    seen = {k: values[-1] for k, values in trainer._metrics["eval"].items()}
    trainer._metrics["eval"].clear()
    vars(trainer).update(kept)
    trainer.model.train(training)
    return loss, seen
