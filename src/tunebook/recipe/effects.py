"""What a changed setting of `lora`, `sft` or `dpo` does to a training that has begun.

Some settings only watch (logging, evaluation, saving), some split the same work otherwise (rows at a time
against accumulation). Every other one decides the weights: with another value, a checkpoint is of another
run.
"""

from __future__ import annotations

from typing import Any

TRAINERS = ("sft", "dpo")

WATCHING_PREFIXES = ("logging_", "log_", "eval_", "save_", "hub_", "include_", "trackio_")
WATCHING = {
    "batch_eval_metrics",
    "disable_tqdm",
    "do_eval",
    "per_device_eval_batch_size",
    "prediction_loss_only",
    "project",
    "push_to_hub",
    "report_to",
    "run_name",
    "skip_memory_metrics",
}
"""Settings that only watch, by name and by the start of their names.

Evaluations draw a number or two of the random stream, so that with dropout the last digits may differ.
"""

SPLITTING = {
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataset_num_proc",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_timeout",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "use_gradient_checkpointing",
}
"""Settings that do the same work in another way. `dataloader_drop_last` is not one: it leaves rows out."""

ROWS, STEPS = "per_device_train_batch_size", "gradient_accumulation_steps"
AUTO = "auto"
"""As rows at a time: as many as fit, out of the accumulation."""
DEFAULT_ROWS, DEFAULT_STEPS = 8, 1
"""What transformers takes where a recipe is silent."""

EVALUATED_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
"""Schedules of the learning rate that follow the evaluations."""


def of_the_weights(settings: dict[str, Any]) -> dict[str, Any]:
    """A stage's settings without those that the weights do not depend on.

    Rows at a time and accumulation are replaced by their product. Where the best checkpoint, early stopping
    or the schedule rests on evaluations, `eval_*` and `save_*` decide the weights too and stay.
    """
    kept = dict(settings)
    model = kept.get("model")
    if isinstance(model, dict) and model.get("loader") == "FastModel":
        # Runs of before there was a choice do not say it.
        kept["model"] = {key: value for key, value in model.items() if key != "loader"}
    for section in ("lora", *TRAINERS):
        values = kept.get(section)
        # A stage of another kind has settings of its own, each of which counts.
        if isinstance(values, dict):
            kept[section] = _of_a_section(values, section in TRAINERS)
    return kept


def _of_a_section(values: dict[str, Any], is_trainer: bool) -> dict[str, Any]:
    evaluations_decide = (
        values.get("load_best_model_at_end")
        or "early_stopping_patience" in values
        or values.get("lr_scheduler_type") in EVALUATED_SCHEDULES
    )
    kept = {}
    for key, value in values.items():
        watches = key in WATCHING or key.startswith(WATCHING_PREFIXES)
        # How many checkpoints are kept matters never: the best one is always among them.
        if evaluations_decide and key.startswith(("eval_", "save_")) and key != "save_total_limit":
            watches = False
        if not watches and key not in SPLITTING:
            kept[key] = value
    # 4 rows accumulated 2 times are the same step as 2 rows accumulated 4 times.
    if is_trainer:
        rows, steps = kept.pop(ROWS, DEFAULT_ROWS), kept.pop(STEPS, DEFAULT_STEPS)
        try:
            kept["rows_a_step"] = rows_a_step({ROWS: rows, STEPS: steps})
        except (TypeError, ValueError):  # no number at all: the trainer will say so
            kept["rows_a_step"] = [1 if rows == AUTO else rows, steps]
    return kept


def rows_a_step(section: dict[str, Any]) -> int:
    """How many rows a step of a trainer's section takes. Raises ValueError for what is no number."""
    rows = section.get(ROWS, DEFAULT_ROWS)
    if rows == AUTO:  # which leaves the product as it is
        rows = 1
    return int(rows) * int(section.get(STEPS, DEFAULT_STEPS))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each setting that was changed: `sft.logging_steps 10 -> 5`."""
    old, new = leaves(before), leaves(now)
    changed = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            changed.append(f"{key} {_text(old, key)} -> {_text(new, key)}")
    return changed


def leaves(settings: dict[str, Any], prefix: str = "", separator: str = ".") -> dict[str, Any]:
    """The values of nested settings by dotted key, or with another separator."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            values |= leaves(value, f"{prefix}{key}{separator}", separator)
        else:
            values[f"{prefix}{key}"] = value
    return values


def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key, "not set")
    if isinstance(value, float) and value.is_integer():  # `logging_steps` may also be a share of all steps
        value = int(value)
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
