"""What a trainer is told: its arguments, callbacks and rows, from a recipe's section."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunebook.models.backend import on_cpu
from tunebook.recipe.effects import AUTO, ROWS, STEPS
from tunebook.recipe.errors import UserError, one_line
from tunebook.recipe.sections import Recipe
from tunebook.recipe.show import as_call
from tunebook.runs import tracking
from tunebook.runs.machine import rank, world_size
from tunebook.training.callbacks import health, metrics_file, whole_checkpoints

# Keys of a section that go to a callback, not to the trainer's arguments.
STOPPING = ("early_stopping_patience", "early_stopping_threshold")

# And those that only this project knows.
OURS = ("start", "control")

REFUSALS = (ValueError, TypeError, ImportError, NotImplementedError, ArithmeticError)
"""What PEFT, transformers and TRL raise for a setting that they do not take."""


def trainer_arguments(config: Any, recipe: Recipe, section: str, folder: Path) -> Any:
    """The recipe's section as `config`, TRL's class of arguments; checkpoints go to `folder`/checkpoints.

    Raises UserError when the class refuses a value, or a step's rows cannot be divided among the processes.
    """
    settings = _defaults(recipe, section)
    for key, value in getattr(recipe, section).items():
        if key not in (*STOPPING, *OURS):
            settings[key] = value
    if settings.get(ROWS) == AUTO:
        settings[ROWS] = 1  # `memory.choose_batch` takes more of them, once it knows the rows
    if world_size() > 1:
        _divide(config, settings, section)
    if isinstance(settings.get("deepspeed"), str):
        settings["deepspeed"] = str(recipe.find_file(settings["deepspeed"]))
    settings["output_dir"] = str(folder / "checkpoints")
    try:
        args = config(**settings)
    except Exception as error:  # whatever it is, it comes from a setting
        key = _key_at_fault(config, settings)
        raise UserError(f"{section}{key}: {one_line(error)}") from error
    if getattr(args, "torch_compile", False) and on_cpu():
        raise UserError(
            f"{section}.torch_compile: on a CPU compiling takes longer than many a training: "
            "leave it and torch_compile_* out"
        )
    if _stopping(recipe, section) and not args.load_best_model_at_end:
        raise UserError(
            f"{section}.early_stopping_patience needs {section}.load_best_model_at_end: true "
            "(and the same eval and save steps)"
        )
    return args


def _key_at_fault(config: Any, settings: dict[str, Any]) -> str:
    """The setting without which a trainer's arguments can be made, after a dot; empty where none is."""
    for key in settings:
        others = {name: value for name, value in settings.items() if name != key}
        # Thirty small objects, and the message names what is to be mended.
        with contextlib.suppress(Exception):
            config(**others)
            return f".{key}"
    return ""


def as_config(args: Any, recipe: Recipe, section: str) -> str:
    """A trainer's arguments as they would be written, without those that nobody has set."""
    arguments = {}
    for key in [*_defaults(recipe, section), *getattr(recipe, section)]:
        if key not in (*STOPPING, *OURS):
            value = getattr(args, key)
            # transformers turns some names into members of an enumeration.
            arguments[key] = getattr(value, "value", value)
    return as_call(type(args).__name__, {"output_dir": args.output_dir, **arguments})


@contextlib.contextmanager
def refusals(section: str) -> Iterator[None]:
    """Turn what a trainer refuses as it is made into one line; with `TUNEBOOK_DEBUG=1` the whole is shown."""
    try:
        yield
    except REFUSALS as error:
        raise UserError(f"{section}: {one_line(error)}") from error


def trainer_callbacks(recipe: Recipe, section: str, args: Any) -> list[Any]:
    """Whole checkpoints, the loss trace, the run's health and, if the section asks for it, early stopping."""
    callbacks = [whole_checkpoints()]
    if rank() == 0:
        callbacks.append(metrics_file(Path(args.output_dir).parent / "metrics.jsonl"))
    callbacks.append(health(section))  # in every process: all see the same numbers and stop together
    stopping = _stopping(recipe, section)
    if stopping:
        from transformers import EarlyStoppingCallback

        callbacks.append(EarlyStoppingCallback(**stopping))
    return callbacks


def _defaults(recipe: Recipe, section: str) -> dict[str, Any]:
    """What the project sets where a section is silent."""
    defaults = {
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "report_to": "none",
        "max_length": recipe.model.max_seq_length,
        # Else transformers logs the mean of the steps before in place of what is not a number.
        "logging_nan_inf_filter": False,
        **tracking.trainer_settings(recipe, section),
    }
    if _stopping(recipe, section):
        defaults["restore_callback_states_from_checkpoint"] = True  # how often it has been patient already
    if section == "sft" and not on_cpu():
        # Unsloth's loss for GPUs replaces the one in which TRL counts tokens (`rl_replacements.py`).
        defaults["include_num_input_tokens_seen"] = "non_padding"
    if world_size() > 1:
        # Searching for unused parameters costs time, and with reentrant checkpointing (Gemma 3n) it fails.
        defaults["ddp_find_unused_parameters"] = False
    return defaults


def _stopping(recipe: Recipe, section: str) -> dict[str, Any]:
    """The section's keys of early stopping."""
    return {key: value for key, value in getattr(recipe, section).items() if key in STOPPING}


def _divide(config: Any, settings: dict[str, Any], section: str) -> None:
    """Divide the rows of a step among the processes, in place; a key not set has the default of `config`."""
    known = inspect.signature(config).parameters
    rows = settings.get(ROWS, known[ROWS].default)
    steps = settings.get(STEPS, known[STEPS].default)
    try:
        settings[ROWS], settings[STEPS] = divide_batch(rows, steps, world_size())
    except ValueError as error:
        raise UserError(
            f"{section}.{error}; set {section}.{ROWS} and {section}.{STEPS} accordingly"
        ) from None


def divide_batch(rows: int, steps: int, processes: int) -> tuple[int, int]:
    """Per-device batch and accumulation of each process: together they take as many rows a step as one did.

    The accumulation is divided first, so that the micro-batches are the very same ones; then the batch.

    Raises ValueError when it does not divide.
    """
    common = math.gcd(steps, processes)
    divisor = processes // common
    if rows % divisor:
        raise ValueError(
            f"{ROWS} {rows} x {STEPS} {steps} = {rows * steps} rows a step "
            f"is no multiple of {processes} processes"
        )
    return rows // divisor, steps // common


def halve_batch(rows: int, steps: int) -> tuple[int, int]:
    """A batch divided by its smallest prime factor (two, if it is even), and so much more accumulation."""
    factor = next(number for number in range(2, rows + 1) if rows % number == 0)
    return rows // factor, steps * factor


def check_val_rows(args: Any, rows: Any, section: str, source: str) -> None:
    """Without `val` rows, evaluate nothing during training. `source` is the key that would give some.

    Raises UserError when something else in the section rests on evaluations.
    """
    if len(rows):
        return
    needs = []
    if args.load_best_model_at_end:
        needs.append(f"{section}.load_best_model_at_end")
    if args.save_strategy == "best":
        needs.append(f"{section}.save_strategy")
    if args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
        needs.append(f"{section}.lr_scheduler_type")
    if needs:
        keys = ", ".join(needs)
        raise UserError(
            f"no val rows to evaluate on, and {keys} cannot do without: "
            f"raise {source}, add rows, or change {keys}"
        )
    if args.eval_strategy != "no" or args.eval_on_start:
        print(
            f"No val rows, so nothing is evaluated during training ({section}.eval_strategy: no); "
            f"{source} sets some apart."
        )
        args.eval_strategy = type(args.eval_strategy)("no")
        args.do_eval = args.eval_on_start = False


def eval_rows(args: Any, rows: Any) -> Any:
    """The rows to evaluate on during training; None when `eval_strategy` is `no`."""
    return None if args.eval_strategy == "no" else rows


def only(columns: list[str], rows: Any) -> Any:
    """Rows with those of the columns that they have."""
    return rows.select_columns([name for name in columns if name in rows.column_names])
