"""What SFT and DPO share: trainer arguments from the recipe, going on from a checkpoint, Ctrl-C, running out of memory.

A step takes as many rows as the recipe says on any number of GPUs, and after the per-device batch had to be halved.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from tunebook import watch
from tunebook.recipe import Recipe, UserError, find_file
from tunebook.run import halvings, rank, read_json, world_size

ROWS, STEPS = "per_device_train_batch_size", "gradient_accumulation_steps"


class OutOfMemory(UserError):
    """One of several processes ran out of memory; `launch` starts all of them again with half the per-device batch."""


def arguments(config: Any, recipe: Recipe, section: str, folder: Path) -> tuple[Any, list[Any]]:
    """The trainer's config from a recipe section, and the callbacks that go with it.

    Raises UserError when the config refuses a value, or when a step's rows cannot be divided among the processes.
    """
    given = dict(getattr(recipe, section))
    stopping = {k: given.pop(k) for k in ("early_stopping_patience", "early_stopping_threshold") if k in given}
    defaults = {"seed": recipe.seed, "data_seed": recipe.seed, "report_to": "none", "max_length": recipe.model.max_seq_length}
    if stopping:
        defaults["restore_callback_states_from_checkpoint"] = True  # how often it has been patient already
    defaults["logging_nan_inf_filter"] = False  # transformers would log the mean of the steps before in place of what is not a number
    if world_size() > 1 or halvings():
        known = inspect.signature(config).parameters
        rows, steps = (given.get(k, known[k].default) for k in (ROWS, STEPS))
        try:
            given |= dict(zip((ROWS, STEPS), share(rows, steps, world_size(), halvings()), strict=True))
        except ValueError as error:
            raise UserError(f"{section}.{error}; set {section}.{ROWS} and {section}.{STEPS} accordingly") from None
        # Searching the graph for them costs time, and with reentrant checkpointing (gemma-3n) it fails.
        defaults["ddp_find_unused_parameters"] = False
    if isinstance(given.get("deepspeed"), str):
        given["deepspeed"] = str(find_file(given["deepspeed"]))
    try:
        args = config(output_dir=str(folder / "checkpoints"), **(defaults | given))
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"{section}: {' '.join(str(error).split())}") from None
    callbacks = [watch.whole_checkpoints(), *([watch.metrics_file(folder / "metrics.jsonl"), watch.remaining_time()] if rank() == 0 else [])]
    callbacks.append(watch.health(section))  # in every process: all see the same numbers and stop together
    if stopping:
        if not args.load_best_model_at_end:
            raise UserError(f"{section}.early_stopping_patience needs {section}.load_best_model_at_end: true (and the same eval and save steps)")
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
        raise UserError(f"no val rows to evaluate on, and {needed} cannot do without: raise {source}, add rows, or change {needed}")
    if args.eval_strategy != "no" or args.eval_on_start:
        print(f"No val rows, so nothing is evaluated during training ({section}.eval_strategy: no); {source} sets some apart.")
        args.eval_strategy, args.do_eval, args.eval_on_start = type(args.eval_strategy)("no"), False, False
    return None


def only(columns: list[str], rows: Any) -> Any:
    """Rows with those of the columns that they have."""
    return rows.select_columns([name for name in columns if name in rows.column_names])


def share(rows: int, steps: int, processes: int, halved: int = 0) -> tuple[int, int]:
    """Per-device batch and accumulation steps for each of several processes: rows x steps x processes stays what it is for one.

    The accumulation is divided first, so that the micro-batches are the very same ones; what remains, the batch is divided by.
    Then the batch is divided `halved` times by its smallest prime factor.

    Raises ValueError when it does not divide.
    """
    common = math.gcd(steps, processes)
    if rows % (processes // common):
        raise ValueError(f"{ROWS} {rows} x {STEPS} {steps} = {rows * steps} rows a step is no multiple of {processes} processes")
    rows, steps = rows // (processes // common), steps // common
    for _ in range(halved):
        factor = next(n for n in range(2, rows + 1) if rows % n == 0)
        rows, steps = rows // factor, steps * factor
    return rows, steps


def run(trainer: Any, folder: Path) -> dict[str, Any]:
    """Train, from the last whole checkpoint if there is one; returns the metrics of the run.

    Out of memory, it goes on from there with half the per-device batch and twice the accumulation. transformers'
    `auto_find_batch_size` is not used for that: it takes a tenth off the batch and leaves the accumulation, so that the
    effective batch, the number of steps and the learning rate's schedule change.

    Raises UserError when memory runs out at a per-device batch of 1, and when the run is sick (`health`); KeyboardInterrupt after a
    Ctrl-C, with a checkpoint of the step that was under way.
    """
    with _stopping_at_a_checkpoint(trainer):
        return _run(trainer, folder)


def _run(trainer: Any, folder: Path) -> dict[str, Any]:
    start = {name: p.detach().clone().cpu() for name, p in trainer.model.named_parameters() if p.requires_grad}
    while True:
        checkpoint = _same_for_all(watch.last_checkpoint(folder / "checkpoints") if rank() == 0 else None)
        before = read_json(checkpoint / "trainer_state.json") if checkpoint else {}
        history = before.get("log_history", [])
        trainer._total_train_tokens = _tokens(history) or 0
        if checkpoint is not None:
            print(f"Going on from {checkpoint.name} of the interrupted run.")
        try:
            output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _halve(trainer.args)
        _reset(trainer, start)  # not above: there the error's frames still hold tensors
    state = trainer.state
    evals = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    return {
        "steps": state.global_step,
        "train_loss": round(output.training_loss + _summed_loss(history) / max(1, state.global_step), 6),
        "eval_loss": evals[-1] if evals else None,
        "best_checkpoint": Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None,
        # Schedules that only step at evaluations do not keep the rate they began with.
        "optimizer_learning_rate": trainer.optimizer.param_groups[0].get("initial_lr", trainer.args.learning_rate),
        "effective_batch_size": trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * trainer.args.world_size,
        "per_device_batch_size": trainer.args.train_batch_size,
        "processes": trainer.args.world_size,
        "tokens": _tokens(state.log_history),
        "resumed_at_step": before.get("global_step"),  # runtime_s is that of the steps from there on
        "runtime_s": round(output.metrics["train_runtime"], 1),
    }


def summary(record: dict[str, Any]) -> Table:
    """What a stage recorded of its training, as a table: metrics, and of DPO its margins with other images and its warnings."""
    table = Table(title="training", show_header=False)
    margins = {f"rewards/margins, {kind} image": margin for kind, margin in record.get("image_margins", {}).items()}
    for name, value in (record["metrics"] | margins).items():
        if value is not None:
            shown = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
            table.add_row(name.replace("_", " "), shown)
    if record.get("warnings"):
        table.caption = "\n".join(record["warnings"])
    return table


@contextlib.contextmanager
def _stopping_at_a_checkpoint(trainer: Any) -> Iterator[None]:
    """The first Ctrl-C ends the training after the step under way, with a checkpoint; the second one at once.

    Of several processes each would stop at a step of its own: there the last checkpoint has to do.
    """
    from transformers import TrainerCallback

    if world_size() > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    class Stop(TrainerCallback):  # type: ignore[misc]
        asked = stopped = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.asked and state.global_step < state.max_steps:
                self.stopped = control.should_save = control.should_training_stop = True

    stop = Stop()

    def ask(number: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        os.write(2, b"\nInterrupted: a checkpoint is saved after this step. Ctrl-C again ends at once.\n")

    trainer.add_callback(stop)
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if stop.stopped:
        raise KeyboardInterrupt


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU or of the machine was not enough."""
    import torch

    said = ("out of memory", "DefaultCPUAllocator: ", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and any(s in str(error) for s in said))


def _halve(args: Any) -> None:
    """Half the per-device batch (and that of the evaluation), twice the accumulation. Raises UserError where that cannot be."""
    rows, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if rows == 1:
        raise UserError(
            "out of memory with one row at a time: set lora.use_gradient_checkpointing=true, model.load_in_4bit=true, "
            "a smaller model.max_seq_length (longer rows are put aside) or a smaller lora.r"
        ) from None
    smaller, more = share(rows, steps, 1, 1)
    if world_size() > 1:  # the others wait for this one's gradients and cannot be told
        raise OutOfMemory(f"out of memory with {rows} rows a device") from None
    args.per_device_train_batch_size, args.gradient_accumulation_steps = smaller, more
    args.per_device_eval_batch_size = max(1, args.per_device_eval_batch_size // 2)
    print(f"Out of memory with {rows} rows a device: goes on with {smaller}, accumulating {more} times; a step has {smaller * more} rows as before.")


def _reset(trainer: Any, start: dict[str, Any]) -> None:
    """Make the trainer as it was before `train`, with the changed batch: first weights, no optimiser state, no gradients."""
    import torch
    from accelerate.utils.memory import clear_device_cache
    from transformers import set_seed

    trainer._train_batch_size = trainer.args.train_batch_size
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.model_wrapped = trainer.model
    trainer.model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if name in start:
                parameter.copy_(start[name])
    for metrics in trainer._metrics.values():
        metrics.clear()
    set_seed(trainer.args.seed)
    trainer.accelerator.free_memory()
    clear_device_cache(garbage_collection=True)


def _same_for_all(value: Any) -> Any:
    """What the first process says, in every process."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def _summed_loss(history: list[dict[str, Any]]) -> float:
    """The losses of all steps up to a checkpoint, added up: transformers counts from 0 after a resume, and divides by all steps.

    Each entry is the mean since the one before; `watch.health` logs at each checkpoint, so that no step is missing.
    """
    logs = [(0, 0.0), *((e["step"], float(e["loss"])) for e in history if "loss" in e)]
    return float(sum(loss * (step - last) for (last, _), (step, loss) in itertools.pairwise(logs)))


def _tokens(history: list[dict[str, Any]]) -> int | None:
    return next((int(e["num_tokens"]) for e in reversed(history) if "num_tokens" in e), None)
