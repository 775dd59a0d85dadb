"""What SFT and DPO share: trainer arguments from the recipe, going on from a checkpoint, Ctrl-C, running out of memory.

A step takes as many rows as the recipe says on any number of GPUs, and after the per-device batch had to be halved.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from tunebook.recipe.errors import UserError
from tunebook.runs.files import read_json
from tunebook.runs.machine import rank, world_size
from tunebook.training import callbacks
from tunebook.training.arguments import divide_batch


class OutOfMemory(UserError):
    """One of several processes ran out of memory; `launch` starts all of them again with half the per-device batch."""


def train(trainer: Any, folder: Path) -> dict[str, Any]:
    """Train, from the last whole checkpoint if there is one; returns the metrics of the run.

    Out of memory, it goes on from there with half the per-device batch and twice the accumulation. transformers'
    `auto_find_batch_size` is not used for that: it takes a tenth off the batch and leaves the accumulation, so that the
    effective batch, the number of steps and the learning rate's schedule change.

    Raises UserError when memory runs out at a per-device batch of 1, and when the run is sick (`health`); KeyboardInterrupt after a
    Ctrl-C, with a checkpoint of the step that was under way.
    """
    with _stopping_at_a_checkpoint(trainer):
        return _train(trainer, folder)


def _train(trainer: Any, folder: Path) -> dict[str, Any]:
    start = {
        name: p.detach().clone().cpu() for name, p in trainer.model.named_parameters() if p.requires_grad
    }
    while True:
        checkpoint = _same_for_all(callbacks.last_checkpoint(folder / "checkpoints") if rank() == 0 else None)
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
        "optimizer_learning_rate": trainer.optimizer.param_groups[0].get(
            "initial_lr", trainer.args.learning_rate
        ),
        "effective_batch_size": trainer.args.train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.args.world_size,
        "per_device_batch_size": trainer.args.train_batch_size,
        "processes": trainer.args.world_size,
        "tokens": _tokens(state.log_history),
        "resumed_at_step": before.get("global_step"),  # runtime_s is that of the steps from there on
        "runtime_s": round(output.metrics["train_runtime"], 1),
    }


def summary(record: dict[str, Any]) -> Table:
    """What a stage recorded of its training, as a table: metrics, and of DPO its margins with other images and its warnings."""
    table = Table(title="training", show_header=False)
    margins = {
        f"rewards/margins, {kind} image": margin for kind, margin in record.get("image_margins", {}).items()
    }
    for name, value in (record["metrics"] | margins).items():
        if value is not None:
            shown = (
                f"{value:,.4g}"
                if isinstance(value, float)
                else f"{value:,}"
                if isinstance(value, int)
                else str(value)
            )
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
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(s in str(error) for s in said)
    )


def _halve(args: Any) -> None:
    """Half the per-device batch (and that of the evaluation), twice the accumulation. Raises UserError where that cannot be."""
    rows, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if rows == 1:
        raise UserError(
            "out of memory with one row at a time: set lora.use_gradient_checkpointing=true, model.load_in_4bit=true, "
            "a smaller model.max_seq_length (longer rows are put aside) or a smaller lora.r"
        ) from None
    smaller, more = divide_batch(rows, steps, 1, 1)
    if world_size() > 1:  # the others wait for this one's gradients and cannot be told
        raise OutOfMemory(f"out of memory with {rows} rows a device") from None
    args.per_device_train_batch_size, args.gradient_accumulation_steps = smaller, more
    args.per_device_eval_batch_size = max(1, args.per_device_eval_batch_size // 2)
    print(
        f"Out of memory with {rows} rows a device: goes on with {smaller}, accumulating {more} times; a step has {smaller * more} rows as before."
    )


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
