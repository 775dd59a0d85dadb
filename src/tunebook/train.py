"""What SFT and DPO share: trainer arguments from the recipe, the mask audit, checkpoints, the loss trace."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tunebook.data.images import TokenCounter
from tunebook.recipe import Recipe, UserError
from tunebook.run import read_json

AUDITED = 8
"""Rows whose masks are counted before the first step; two of them are shown."""


def arguments(config: Any, recipe: Recipe, section: str, folder: Path) -> tuple[Any, list[Any]]:
    """The trainer's config from a recipe section, and the callbacks that go with it.

    Raises UserError when the config refuses a value.
    """
    from transformers import EarlyStoppingCallback

    given = dict(getattr(recipe, section))
    stopping = {k: given.pop(k) for k in ("early_stopping_patience", "early_stopping_threshold") if k in given}
    defaults = {"seed": recipe.seed, "data_seed": recipe.seed, "report_to": "none", "max_length": recipe.model.max_seq_length}
    try:
        args = config(output_dir=str(folder / "checkpoints"), **(defaults | given))
    except (ValueError, TypeError) as error:
        raise UserError(f"{section}: {' '.join(str(error).split())}") from None
    callbacks = [metrics_file(folder / "metrics.jsonl")]
    if stopping:
        if not args.load_best_model_at_end:
            raise UserError(f"{section}.early_stopping_patience needs {section}.load_best_model_at_end: true (and the same eval and save steps)")
        callbacks.append(EarlyStoppingCallback(**stopping))
    return args, callbacks


def eval_rows(args: Any, rows: Any) -> Any:
    """The rows to evaluate on during training; None when there are none or `eval_strategy` is `no`."""
    return rows if len(rows) and args.eval_strategy != "no" else None


def only(columns: list[str], rows: Any) -> Any:
    """Rows with those of the columns that they have."""
    return rows.select_columns([name for name in columns if name in rows.column_names])


def sees_images(trainer: Any) -> bool:
    """Whether the trainer's rows have images; they are then tokenised batch by batch."""
    return "images" in (trainer.train_dataset.column_names or ())


def audit_images(trainer: Any, processor: Any) -> dict[str, Any]:
    """In the first batch every image is there as pixels, and every row has the tokens that its images take.

    Raises UserError when not: the model would be trained blind.
    """
    rows = [trainer.train_dataset[i] for i in range(min(AUDITED, len(trainer.train_dataset)))]
    paths, counter = [row["images"] for row in rows], TokenCounter(processor)
    batch = trainer.data_collator([dict(row) for row in rows])
    found = (batch["input_ids"] == processor.image_token_id).sum(1).tolist()
    twice = len(found) // len(rows)  # chosen and rejected
    wanted = [counter.soft(shown) for shown in paths] * twice
    pixels = tuple(batch["pixel_values"].shape) if "pixel_values" in batch else None
    if pixels is None or found != wanted or not sum(wanted):
        row = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b), 0)
        why = f"row {row} has {found[row]} image tokens, {wanted[row]} are expected" if pixels else "the batch has no pixel_values"
        raise UserError(f"image audit: {why}; the model would not see the images (raise model.max_seq_length, check model.base)")
    audit = {"rows": len(rows), "images": sum(map(len, paths)), "image_tokens": sum(wanted) // twice}
    print(f"Image audit: {audit['images']} images in {len(rows)} rows, {audit['image_tokens']} image tokens, pixel_values {pixels}")
    return audit


def audit_mask(trainer: Any, tokenizer: Any) -> dict[str, Any]:
    """Which tokens will be trained on: counted in the first rows, two rows shown, before a step is made.

    Raises UserError when no token or every token of the rows carries loss.
    """
    rows, images = trainer.train_dataset.select(range(min(AUDITED, len(trainer.train_dataset)))), sees_images(trainer)
    batch = trainer.data_collator([{k: v for k, v in row.items() if images or k != "prompt"} for row in rows])
    ids, labels, real = (batch[k].tolist() for k in ("input_ids", "labels", "attention_mask"))
    trained = sum(label != -100 for row in labels for label in row)
    share = trained / sum(map(sum, real))
    console = Console()
    console.print(
        f"[bold]Mask audit[/bold]: {share:.0%} of the tokens of {len(ids)} rows carry loss ([green]trained[/green], [dim]not trained[/dim])"
    )
    for row in range(min(2, len(ids))):
        console.print(_coloured(tokenizer, ids[row], labels[row], real[row]))
    if share == 0:
        raise UserError("mask audit: no token carries loss; the completions were cut off or are empty (raise model.max_seq_length, check the data)")
    if share == 1:
        raise UserError("mask audit: every token carries loss, the prompts too; rows need separate `prompt` and `completion` columns")
    return {"rows": len(ids), "trained_share": round(share, 4)} | (audit_images(trainer, tokenizer) if images else {})


def run(trainer: Any, folder: Path, resume: bool) -> dict[str, Any]:
    """Train, from the last whole checkpoint if asked and there is one; returns the metrics of the run."""
    checkpoint = last_checkpoint(folder / "checkpoints") if resume else None
    if checkpoint is not None:
        print(f"Going on from {checkpoint.name} of the interrupted run.")
    output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    evals = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    if not math.isfinite(output.training_loss):
        raise UserError("the training loss is not finite: lower the learning rate or set max_grad_norm")
    return {
        "steps": state.global_step,
        "train_loss": round(output.training_loss, 6),
        "eval_loss": evals[-1] if evals else None,
        "best_checkpoint": Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None,
        "optimizer_learning_rate": trainer.optimizer.param_groups[0]["initial_lr"],
        "effective_batch_size": trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * trainer.args.world_size,
        "tokens": next((int(e["num_tokens"]) for e in reversed(state.log_history) if "num_tokens" in e), None),
        "runtime_s": round(output.metrics["train_runtime"], 1),
    }


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint. The trainer writes its state last, so one without it was cut short and goes."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    for checkpoint in found:
        if read_json(checkpoint / "trainer_state.json"):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def log_history(folder: Path) -> list[dict[str, Any]]:
    """The logged metrics of a stage (`metrics.jsonl`), one entry per log."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def metrics_file(path: Path) -> Any:
    """A callback that keeps `metrics.jsonl` up to date; after a resume it starts from the checkpoint's own history."""
    from transformers import TrainerCallback

    class MetricsFile(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            path.write_text("".join(json.dumps(entry) + "\n" for entry in state.log_history))

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with path.open("a") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")

    return MetricsFile()


def _coloured(tokenizer: Any, ids: list[int], labels: list[int], real: list[int]) -> Text:
    text, image = Text("  "), getattr(tokenizer, "image_token_id", None)
    for before, token, label, keep in zip([None, *ids], ids, labels, real, strict=False):
        if keep and not (token == image == before):  # an image's tokens are all the same: one stands for them
            text.append(tokenizer.decode([token]), style="green" if label != -100 else "dim")
    return text
