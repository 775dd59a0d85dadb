"""What SFT and DPO share: trainer arguments from the recipe, the mask audit, a run's health, checkpoints, the loss trace, running out of memory.

A step takes as many rows as the recipe says on any number of GPUs, and after the per-device batch had to be halved.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunebook.data.images import TokenCounter
from tunebook.recipe import Recipe, UserError, find_file
from tunebook.run import checksums, halvings, rank, read_json, world_size, write_json

AUDITED = 8
"""Rows whose masks are counted before the first step; two of them are shown."""
ROWS, STEPS = "per_device_train_batch_size", "gradient_accumulation_steps"
CHECKSUMS = "checksums.json"
"""Written into a checkpoint when it is whole."""


class OutOfMemory(UserError):
    """One of several processes ran out of memory; `launch` starts all of them again with half the per-device batch."""


def arguments(config: Any, recipe: Recipe, section: str, folder: Path) -> tuple[Any, list[Any]]:
    """The trainer's config from a recipe section, and the callbacks that go with it.

    Raises UserError when the config refuses a value, or when a step's rows cannot be divided among the processes.
    """
    given = dict(getattr(recipe, section))
    stopping = {k: given.pop(k) for k in ("early_stopping_patience", "early_stopping_threshold") if k in given}
    defaults = {"seed": recipe.seed, "data_seed": recipe.seed, "report_to": "none", "max_length": recipe.model.max_seq_length}
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
    callbacks = [whole_checkpoints(), *([metrics_file(folder / "metrics.jsonl"), remaining_time()] if rank() == 0 else [])]
    callbacks.append(health(section))  # in every process: all see the same numbers and stop together
    if stopping:
        if not args.load_best_model_at_end:
            raise UserError(f"{section}.early_stopping_patience needs {section}.load_best_model_at_end: true (and the same eval and save steps)")
        from transformers import EarlyStoppingCallback

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
    # Text row by row: Unsloth on a GPU pads nothing and makes a batch one long row.
    parts = [[row] for row in rows] if not images else [list(rows)]
    batches = [trainer.data_collator([{k: v for k, v in row.items() if images or k != "prompt"} for row in part]) for part in parts]
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
        raise UserError("mask audit: no token carries loss; the completions were cut off or are empty (raise model.max_seq_length, check the data)")
    if share == 1:
        raise UserError("mask audit: every token carries loss, the prompts too; rows need separate `prompt` and `completion` columns")
    return {"rows": len(ids), "trained_share": round(share, 4)} | (audit_images(trainer, tokenizer, batches[0]) if images else {})


def _there(batch: Any) -> Any:
    """Which tokens of a batch could carry loss: those that are no padding. Without padding there is no attention mask, and TRL gives no
    loss to the tokens at which the positions start anew."""
    return batch["attention_mask"] if "attention_mask" in batch else batch["position_ids"] != 0


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
        checkpoint = _same_for_all(last_checkpoint(folder / "checkpoints") if rank() == 0 else None)
        history = read_json(checkpoint / "trainer_state.json").get("log_history", []) if checkpoint else []
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
        "train_loss": round(output.training_loss, 6),
        "eval_loss": evals[-1] if evals else None,
        "best_checkpoint": Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None,
        "optimizer_learning_rate": trainer.optimizer.param_groups[0]["initial_lr"],
        "effective_batch_size": trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * trainer.args.world_size,
        "per_device_batch_size": trainer.args.train_batch_size,
        "processes": trainer.args.world_size,
        "tokens": _tokens(state.log_history),
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


def _tokens(history: list[dict[str, Any]]) -> int | None:
    return next((int(e["num_tokens"]) for e in reversed(history) if "num_tokens" in e), None)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a healthy run that is as it was written. One without checksums was cut short: it goes, and so do the others."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        known, found = read_json(checkpoint / CHECKSUMS), checksums(checkpoint, [CHECKSUMS])
        history = read_json(checkpoint / "trainer_state.json").get("log_history", [])
        if known and known == found and not any(no_number(entry, half_precision=True) for entry in history):
            return checkpoint
        if known and known != found:
            names = [name for name in known if known[name] != found.get(name)] or ["it has other files"]
            print(f"{checkpoint.name} is damaged ({names[0]}) and left out.")
        shutil.rmtree(checkpoint)
    return None


def whole_checkpoints() -> Any:
    """A callback that ends the writing of a checkpoint: with checksums, and so that the clock does not decide which one is the oldest."""
    from accelerate import PartialState
    from transformers import TrainerCallback

    class WholeCheckpoints(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            everyone = PartialState()
            everyone.wait_for_everyone()  # each process writes files of its own
            if rank() == 0:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                # With DPO's `ref` folder beside it, transformers' resume would leave the trained adapter at its start.
                shutil.rmtree(folder / "ref", ignore_errors=True)
                write_json(folder / CHECKSUMS, checksums(folder))
                os.utime(folder, (state.global_step, state.global_step))  # the trainer deletes the oldest by this time
            everyone.wait_for_everyone()  # one that fails in the next step ends all

    return WholeCheckpoints()


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


ALARMS = 3
"""Logs in a row that must say so before a run is stopped for numbers that are only strange; what is not a number stops it at once."""
WORSE, STEEPER = 5.0, 1000.0
"""How many times a run's first loss, and its usual gradient norm, are beyond what one odd batch explains (both at least 1)."""


def no_number(entry: dict[str, Any], half_precision: bool = False) -> str:
    """Which number of a log is none; empty when all are.

    With `half_precision` (float16) an infinite gradient is normal: the loss scaler leaves out the step and halves its scale.
    """
    names = ["loss", "train_loss", "eval_loss", *([] if half_precision else ["grad_norm"])]
    values = {name: float(entry[name]) for name in names if entry.get(name) is not None}
    return ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))


def strange(logs: list[dict[str, Any]]) -> str:
    """What the newest of a run's logs shows that happens now and then, but not again and again; empty when there is nothing."""
    steps = [(float(e["loss"]), float(e.get("grad_norm", math.nan))) for e in logs if "loss" in e]
    (first, _), *before, (loss, norm) = steps[0], *steps
    usual = statistics.median([1.0, *(n for _, n in before[:-1] if math.isfinite(n))])
    if norm == 0:
        return f"the gradient is exactly 0 (at a loss of {loss:.3g})"
    if loss > WORSE * max(1.0, first):
        return f"the loss has grown from {first:.3g} to {loss:.3g}"
    if math.isfinite(norm) and norm > STEEPER * max(1.0, usual):
        return f"the gradient norm has grown from {usual:.3g} to {norm:.3g}"
    return ""


def health(section: str) -> Any:
    """A callback that stops a sick run: at once when a number is none, else after `ALARMS` strange logs in a row.

    No checkpoint is written before the steps that led to it have been logged and looked at, and none while something is wrong.

    Raises UserError that says what was seen, what to do, and which checkpoint is the last good one.
    """
    from transformers import TrainerCallback

    class Health(TrainerCallback):  # type: ignore[misc]
        alarms = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_log |= control.should_save

        on_epoch_end = on_step_end

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            newest = state.log_history[-1]
            broken = no_number(newest, args.fp16)
            odd = strange(state.log_history) if "loss" in newest and not broken else ""
            self.alarms = self.alarms + 1 if odd else 0 if "loss" in newest else self.alarms
            control.should_save &= not (broken or self.alarms)
            if broken or self.alarms == ALARMS:
                raise UserError(f"stopped at step {state.global_step}: {broken or odd}. {_remedy(odd, section)}. {_kept(Path(args.output_dir))}")

    return Health()


def _remedy(odd: str, section: str) -> str:
    if "exactly 0" in odd:
        return f"Nothing is learnt any more: look at the rows (are completions empty or cut off?) or lower {section}.learning_rate"
    return f"Lower {section}.learning_rate, set {section}.max_grad_norm to 1 or less, or take model.dtype=float32"


def _kept(folder: Path) -> str:
    checkpoint = max(folder.glob("checkpoint-*"), key=_step, default=None)
    return f"The last good checkpoint is {checkpoint}" if checkpoint else "No checkpoint was written before"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


TIMED = 5
"""Steps that the estimate of the remaining time rests on, after the first one, which is slower."""


def remaining_time() -> Any:
    """A callback that says once, after the first steps, how long the rest will take (evaluations not counted)."""
    from transformers import TrainerCallback

    class RemainingTime(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.first, self.started = state.global_step, time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            done = state.global_step - self.first
            if done == 1:
                self.started = time.monotonic()
            if done == 1 + TIMED and state.max_steps > state.global_step:
                step = (time.monotonic() - self.started) / TIMED
                left = state.max_steps - state.global_step
                print(f"{step:.2g} s a step: about {step * left / 60:.1f} minutes for the {left} steps left.")

    return RemainingTime()


def _coloured(tokenizer: Any, ids: list[int], labels: list[int], real: list[int]) -> Text:
    text, image = Text("  "), getattr(tokenizer, "image_token_id", None)
    for before, token, label, keep in zip([None, *ids], ids, labels, real, strict=False):
        if keep and not (token == image == before):  # an image's tokens are all the same: one stands for them
            text.append(tokenizer.decode([token]), style="green" if label != -100 else "dim")
    return text
