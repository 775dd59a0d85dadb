"""Trainer arguments from a recipe's section."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError
from tunebook.recipe.files import find_file
from tunebook.recipe.sections import Recipe
from tunebook.runs.machine import halvings, rank, world_size
from tunebook.training.callbacks import health, metrics_file, remaining_time, whole_checkpoints

ROWS, STEPS = "per_device_train_batch_size", "gradient_accumulation_steps"


def arguments(config: Any, recipe: Recipe, section: str, folder: Path) -> tuple[Any, list[Any]]:
    """The trainer's config from a recipe section, and the callbacks that go with it.

    Raises UserError when the config refuses a value, or when a step's rows cannot be divided among the processes.
    """
    given = dict(getattr(recipe, section))
    stopping = {
        k: given.pop(k) for k in ("early_stopping_patience", "early_stopping_threshold") if k in given
    }
    defaults = {
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "report_to": "none",
        "max_length": recipe.model.max_seq_length,
    }
    if stopping:
        defaults["restore_callback_states_from_checkpoint"] = True  # how often it has been patient already
    defaults["logging_nan_inf_filter"] = (
        False  # transformers would log the mean of the steps before in place of what is not a number
    )
    if world_size() > 1 or halvings():
        known = inspect.signature(config).parameters
        rows, steps = (given.get(k, known[k].default) for k in (ROWS, STEPS))
        try:
            given |= dict(
                zip((ROWS, STEPS), divide_batch(rows, steps, world_size(), halvings()), strict=True)
            )
        except ValueError as error:
            raise UserError(
                f"{section}.{error}; set {section}.{ROWS} and {section}.{STEPS} accordingly"
            ) from None
        # Searching the graph for them costs time, and with reentrant checkpointing (gemma-3n) it fails.
        defaults["ddp_find_unused_parameters"] = False
    if isinstance(given.get("deepspeed"), str):
        given["deepspeed"] = str(find_file(given["deepspeed"]))
    try:
        args = config(output_dir=str(folder / "checkpoints"), **(defaults | given))
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{section}: {' '.join(str(error).split())}") from None
    callbacks = [
        whole_checkpoints(),
        *([metrics_file(folder / "metrics.jsonl"), remaining_time()] if rank() == 0 else []),
    ]
    callbacks.append(health(section))  # in every process: all see the same numbers and stop together
    if stopping:
        if not args.load_best_model_at_end:
            raise UserError(
                f"{section}.early_stopping_patience needs {section}.load_best_model_at_end: true (and the same eval and save steps)"
            )
        from transformers import EarlyStoppingCallback

        callbacks.append(EarlyStoppingCallback(**stopping))
    return args, callbacks


def eval_rows(args: Any, rows: Any, section: str, source: str) -> Any:
    """The rows to evaluate on during training; None when `eval_strategy` is `no`, as it becomes where there are no rows (of `source`,
    the key that gives them).

    Raises UserError when something else in the section rests on evaluations.
    """
    if len(rows):
        return rows if args.eval_strategy != "no" else None
    needs = {
        "load_best_model_at_end": args.load_best_model_at_end,
        "save_strategy": args.save_strategy == "best",
        "lr_scheduler_type": args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"),
    }
    if needed := ", ".join(f"{section}.{key}" for key, is_so in needs.items() if is_so):
        raise UserError(
            f"no val rows to evaluate on, and {needed} cannot do without: raise {source}, add rows, or change {needed}"
        )
    if args.eval_strategy != "no" or args.eval_on_start:
        print(
            f"No val rows, so nothing is evaluated during training ({section}.eval_strategy: no); {source} sets some apart."
        )
        args.eval_strategy, args.do_eval, args.eval_on_start = type(args.eval_strategy)("no"), False, False
    return None


def only(columns: list[str], rows: Any) -> Any:
    """Rows with those of the columns that they have."""
    return rows.select_columns([name for name in columns if name in rows.column_names])


def divide_batch(rows: int, steps: int, processes: int, halved: int = 0) -> tuple[int, int]:
    """Per-device batch and accumulation steps for each of several processes: rows x steps x processes stays what it is for one.

    The accumulation is divided first, so that the micro-batches are the very same ones; what remains, the batch is divided by.
    Then the batch is divided `halved` times by its smallest prime factor.

    Raises ValueError when it does not divide.
    """
    common = math.gcd(steps, processes)
    if rows % (processes // common):
        raise ValueError(
            f"{ROWS} {rows} x {STEPS} {steps} = {rows * steps} rows a step is no multiple of {processes} processes"
        )
    rows, steps = rows // (processes // common), steps // common
    for _ in range(halved):
        factor = next(n for n in range(2, rows + 1) if rows % n == 0)
        rows, steps = rows // factor, steps * factor
    return rows, steps
