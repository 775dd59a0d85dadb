"""What SFT and DPO share: going on from a checkpoint, Ctrl-C, running out of memory, the metrics of a run.

A step takes as many rows as the recipe says, on any number of GPUs, also after the batch was halved.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tunebook.models import adapters, backend
from tunebook.recipe.effects import ROWS, STEPS
from tunebook.recipe.errors import UserError, one_line
from tunebook.recipe.overrides import switch
from tunebook.runs import signals
from tunebook.runs.files import read_json, tokens_seen
from tunebook.runs.machine import highest_of_all, rank, same_for_all, world_size
from tunebook.runs.tables import Table
from tunebook.training.arguments import REFUSALS, halve_batch
from tunebook.training.callbacks import last_checkpoint
from tunebook.training.live import show_live


class How(NamedTuple):
    """How to begin, as a notebook's parameters or the command line say it."""

    force_parameter: Any = False
    resume_parameter: Any = True
    fresh_parameter: Any = False

    @property
    def force(self) -> bool:
        """Train again though the same adapter is there."""
        return switch("force", self.force_parameter)

    @property
    def resume(self) -> bool:
        """Go on from the last checkpoint of an interrupted run; `force` and `fresh` start over."""
        start_over = self.force or switch("fresh", self.fresh_parameter)
        return switch("resume", self.resume_parameter, default=True) and not start_over


def train(trainer: Any, folder: Path) -> dict[str, Any]:
    """Train, from the last whole checkpoint if there is one, and save the adapter into `folder`/adapter.

    Returns the `metrics` of the run and its number of `rows`.

    Out of memory, it goes on from there with half the per-device batch and twice the accumulation.
    transformers' `auto_find_batch_size` is not used for that: it takes a tenth off the batch and leaves the
    accumulation, so that the effective batch, the number of steps and the learning rate's schedule change.

    Raises UserError when memory runs out at a per-device batch of 1 or in one of several processes, when the
    run is sick (`callbacks.health`), and for what a library refuses before the first step is done;
    KeyboardInterrupt after a Ctrl-C, with a checkpoint.
    """
    show_live(trainer)
    with _checkpoint_on_interrupt(trainer):
        metrics = _train(trainer, folder)
    adapters.save_adapter(trainer.model, trainer.processing_class, folder / "adapter")
    return {"metrics": metrics, "rows": {"train": len(trainer.train_dataset)}}


def _train(trainer: Any, folder: Path) -> dict[str, Any]:
    start = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            start[name] = parameter.detach().clone().cpu()
    while True:
        checkpoint = last_checkpoint(folder / "checkpoints") if rank() == 0 else None
        checkpoint = same_for_all(checkpoint)
        resumed = read_json(checkpoint / "trainer_state.json") if checkpoint else {}
        trainer._total_train_tokens = _tokens(resumed.get("log_history", [])) or 0
        if checkpoint:
            # transformers compares `eval_steps: 0.1` with the number that a checkpoint has of it, and warns.
            for name in ("logging_steps", "eval_steps", "save_steps"):
                share = getattr(trainer.args, name) or 1
                if share < 1:
                    setattr(trainer.args, name, math.ceil(resumed["max_steps"] * share))
            step = resumed["global_step"] + 1
            print(f"Going on from {checkpoint.name} of the interrupted run, at step {step}.")
        elif (folder / "metrics.jsonl").exists():
            print("The interrupted run has left no checkpoint: training begins at step 1.")
        try:
            output = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            return _metrics(trainer, output, resumed)
        except Exception as error:
            if not backend.is_out_of_memory(error):
                # Optimisers, schedules and losses look at their settings only here.
                if trainer.state.global_step == 0 and isinstance(error, REFUSALS):
                    section = "dpo" if "DPO" in type(trainer.args).__name__ else "sft"
                    raise UserError(f"{section}: {one_line(error)}") from error
                raise
            _halve(trainer.args)
        # Not in the except clause: there the frames of the error still hold tensors.
        _reset(trainer, start)


def _metrics(trainer: Any, output: Any, resumed: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a run; `resumed` is the trainer's state in the checkpoint that it went on from."""
    args, state = trainer.args, trainer.state
    # transformers counts the loss from 0 after a resume, and divides by all steps.
    before = _summed_loss(resumed.get("log_history", [])) / max(1, state.global_step)
    evaluations = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    best = state.best_model_checkpoint
    return {
        "steps": state.global_step,
        "train_loss": round(output.training_loss + before, 6),
        "eval_loss": evaluations[-1] if evaluations else None,
        "best_checkpoint": Path(best).name if best else None,
        # Schedules that only step at evaluations do not keep the rate they began with.
        "optimizer_learning_rate": trainer.optimizer.param_groups[0].get("initial_lr", args.learning_rate),
        "effective_batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "per_device_batch_size": args.train_batch_size,
        "processes": args.world_size,
        "tokens": _tokens(state.log_history),
        "resumed_at_step": resumed.get("global_step"),
        "runtime_s": round(output.metrics["train_runtime"], 1),  # of the steps after a resume
    }


def _summed_loss(history: list[dict[str, Any]]) -> float:
    """The losses of all steps up to a checkpoint, added up.

    Each entry is the mean since the one before; `health` logs at each checkpoint, so that no step is missing.
    """
    total, last = 0.0, 0
    for entry in history:
        if "loss" in entry:
            total += float(entry["loss"]) * (entry["step"] - last)
            last = entry["step"]
    return total


def _tokens(history: list[dict[str, Any]]) -> int | None:
    """The tokens seen so far, of the newest entry that says so."""
    for entry in reversed(history):
        tokens = tokens_seen(entry)
        if tokens is not None:
            return int(tokens)
    return None


def summary(record: dict[str, Any]) -> Table:
    """What a stage recorded of its training, as a table, with DPO's warnings below."""
    table = Table(title="training", show_header=False)
    metrics = dict(record["metrics"])
    for kind, margin in record.get("image_margins", {}).items():
        metrics[f"rewards/margins, {kind} image"] = margin
    for name, value in metrics.items():
        if value is None:
            continue
        text = str(value)
        if isinstance(value, float):
            text = f"{value:,.4g}"
        elif isinstance(value, int):
            text = f"{value:,}"
        table.add_row(name.replace("_", " "), text)
    if record.get("warnings"):
        table.caption = "\n".join(record["warnings"])
    return table


@contextlib.contextmanager
def _checkpoint_on_interrupt(trainer: Any) -> Iterator[None]:
    """The first Ctrl-C ends the training after the step under way, with a checkpoint; the second one at once.

    So do SIGTERM and SIGUSR1, which a cluster sends before it takes the machine away; the exit code is 143.
    Several processes end after the same step, also when only one of them was told.
    """
    from transformers import TrainerCallback

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    class Stop(TrainerCallback):  # type: ignore[misc]
        interrupted = 0  # the number of the signal
        stopped = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.interrupted = highest_of_all(self.interrupted, args.device)
            if self.interrupted and state.global_step < state.max_steps:
                self.stopped = control.should_save = control.should_training_stop = True

    stop = Stop()

    def interrupt(number: int, frame: Any) -> None:
        if stop.interrupted:
            # Plain papermill sends SIGTERM 2.5 seconds after Ctrl-C: the step goes on, until SIGKILL after 5.
            # Of several processes torchrun ends all when one has to go at once.
            if number == signal.SIGINT and world_size() == 1:
                raise KeyboardInterrupt
            return
        stop.interrupted = number
        os.write(2, b"\nInterrupted: a checkpoint is saved after this step. Ctrl-C again ends at once.\n")

    trainer.add_callback(stop)
    with signals.handled_by(interrupt):
        yield
    if stop.stopped:
        signals.end_by(stop.interrupted)


def _halve(args: Any) -> None:
    """Half the per-device batch (and that of the evaluation), twice the accumulation.

    Raises UserError where that cannot be.
    """
    rows = args.per_device_train_batch_size
    if rows == 1:
        raise UserError(
            "out of memory with one row at a time: set lora.use_gradient_checkpointing=true, "
            "model.load_in_4bit=true, a smaller model.max_seq_length (longer rows are put aside) "
            "or a smaller lora.r"
        ) from None
    smaller, steps = halve_batch(rows, args.gradient_accumulation_steps)
    if world_size() > 1:  # the others wait for this one's gradients and cannot be told
        raise UserError(
            f"out of memory with {rows} rows a device: set {ROWS}={smaller} "
            f"and {STEPS}={steps * world_size()}, then a step has as many rows as before"
        ) from None
    args.per_device_train_batch_size, args.gradient_accumulation_steps = smaller, steps
    args.per_device_eval_batch_size = max(1, args.per_device_eval_batch_size // 2)
    print(
        f"Out of memory with {rows} rows a device: goes on with {smaller}, accumulating {steps} times; "
        f"a step has {smaller * steps} rows as before."
    )


def _reset(trainer: Any, start: dict[str, Any]) -> None:
    """Make the trainer as it was before `train`: first weights, no optimiser state, no gradients."""
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
