"""Callbacks of a trainer: the loss trace, the run's health, whole checkpoints, what goes wrong in DPO."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError
from tunebook.recipe.idle import NO_WARMUP
from tunebook.runs.files import PROGRESS, checksums, read_json, write_json
from tunebook.runs.machine import rank

CHECKSUMS = "checksums.json"  # written into a checkpoint when it is whole

# A run is stopped after so many strange logs in a row. A loss is strange when it is so many times the first,
# a gradient norm so many times the usual one (both at least 1): one odd batch does not explain that.
ALARMS, WORSE, STEEPER = 3, 5.0, 1000.0

TRIAL = 20  # steps; fewer are a look at whether it runs at all

WINDOW = 5  # logs that a judgement of DPO is averaged over: one batch says little
FALL = 2.0  # nats that chosen may lose: then it is exp(2), seven times, less likely than it was


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a healthy run that is as it was written.

    Newer ones are deleted: those without checksums were cut short, others are damaged or of a sick run.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        recorded = read_json(checkpoint / CHECKSUMS)
        current = checksums(checkpoint, [CHECKSUMS])
        history = read_json(checkpoint / "trainer_state.json").get("log_history", [])
        sick = any(not_a_number(entry, half_precision=True) for entry in history)
        if recorded and recorded == current and not sick:
            return checkpoint
        if recorded and recorded != current:
            names = [name for name in recorded if recorded[name] != current.get(name)]
            print(f"{checkpoint.name} is damaged ({(names or ['it has other files'])[0]}) and left out.")
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def whole_checkpoints() -> Any:
    """A callback that ends the writing of a checkpoint, with checksums of its files.

    Going on from one, the steps at which it logs, evaluates and saves are those of now.
    """
    from accelerate import PartialState
    from transformers import TrainerCallback

    class WholeCheckpoints(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # transformers goes on with the checkpoint's logging, evaluation and saving steps, not with ours.
            state.compute_steps(args, state.max_steps)

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            processes = PartialState()
            processes.wait_for_everyone()  # each writes files of its own
            if rank() == 0:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                # With DPO's `ref` beside it, transformers' resume leaves the trained adapter at its start.
                shutil.rmtree(folder / "ref", ignore_errors=True)
                write_json(folder / CHECKSUMS, checksums(folder))
                # The trainer deletes the oldest by this time, and a clock may have been set back.
                os.utime(folder, (state.global_step, state.global_step))
            processes.wait_for_everyone()  # one that fails in the next step ends all

    return WholeCheckpoints()


def metrics_file(path: Path) -> Any:
    """A callback that keeps `metrics.jsonl` up to date, after a resume from the checkpoint's history on."""
    from transformers import TrainerCallback

    class MetricsFile(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            path.write_text("".join(json.dumps(entry) + "\n" for entry in state.log_history))
            # For whoever follows the training from another process.
            write_json(path.with_name(PROGRESS), {"steps": state.max_steps, "done": state.global_step})

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            path.with_name(PROGRESS).unlink(missing_ok=True)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with path.open("a") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")

    return MetricsFile()


def health(section: str) -> Any:
    """A callback that stops a sick run: at once for NaN and infinity, else after `ALARMS` odd logs in a row.

    No checkpoint is written before its steps have been logged and checked, and none while something is wrong.

    Raises UserError that says what is wrong, what to do, and which checkpoint is the last good one.
    """
    from transformers import TrainerCallback

    class Health(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if rank() == 0:
                for line in after_the_end(args, state.max_steps, section):
                    print(line)

        alarms = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if control.should_save:
                control.should_log = True

        on_epoch_end = on_step_end

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            newest = state.log_history[-1]
            reason = broken = not_a_number(newest, args.fp16)
            if "loss" in newest and not broken:  # an evaluation says nothing about the steps
                reason = strange(state.log_history)
                self.alarms = self.alarms + 1 if reason else 0
            if broken or self.alarms:
                control.should_save = False
            if broken or self.alarms == ALARMS:
                raise UserError(
                    f"stopped at step {state.global_step}: {reason}. {_remedy(reason, section)}. "
                    f"{_last_good(Path(args.output_dir))}"
                )

    return Health()


def after_the_end(args: Any, steps: int, section: str) -> list[str]:
    """What the settings of a section put off until after its last step, in a sentence each.

    Not of a trial of a few steps.
    """
    if steps < TRIAL:
        return []
    lines = []
    warmup = args.get_warmup_steps(steps)
    if warmup >= steps and args.lr_scheduler_type not in NO_WARMUP:
        rate = f"{args.learning_rate:g}"
        lines.append(f"warmup_steps: {warmup} of {steps} steps, so the learning rate never gets to {rate}")
    if args.eval_strategy == "steps" and args.eval_steps > steps:
        lines.append(f"eval_steps: {args.eval_steps:g} of {steps} steps, so val is never looked at")
    if args.save_strategy == "steps" and args.save_steps > steps:
        lines.append(f"save_steps: {args.save_steps:g} of {steps} steps, so a crash before the end loses all")
    return [f"Warning: {section}.{line}" for line in lines]


def not_a_number(entry: dict[str, Any], half_precision: bool = False) -> str:
    """Which number of a log is infinite or NaN; empty when none is.

    In `half_precision` (float16) an infinite gradient is normal: the loss scaler skips the step.
    """
    names = ["loss", "train_loss", "eval_loss"]
    if not half_precision:
        names.append("grad_norm")
    odd = []
    for name in names:
        value = entry.get(name)
        if value is not None and not math.isfinite(float(value)):
            odd.append(f"{name} is {float(value)}")
    return ", ".join(odd)


def strange(logs: list[dict[str, Any]]) -> str:
    """What in the newest of a run's logs is odd, though it may happen now and then; empty when nothing is."""
    steps = [entry for entry in logs if "loss" in entry]
    norms = [float(entry.get("grad_norm", math.nan)) for entry in steps]
    first, loss, norm = float(steps[0]["loss"]), float(steps[-1]["loss"]), norms[-1]
    # Without the newest norm and the one before it, which may be part of the same trouble.
    usual = statistics.median([1.0, *filter(math.isfinite, norms[:-2])])
    if norm == 0:
        return f"the gradient is exactly 0 (at a loss of {loss:.3g})"
    if loss > WORSE * max(1.0, first):
        return f"the loss has grown from {first:.3g} to {loss:.3g}"
    if math.isfinite(norm) and norm > STEEPER * max(1.0, usual):
        return f"the gradient norm has grown from {usual:.3g} to {norm:.3g}"
    return ""


def _remedy(reason: str, section: str) -> str:
    if "exactly 0" in reason:
        return (
            "Nothing is learnt any more: look at the rows (are completions empty or cut off?) "
            f"or lower {section}.learning_rate"
        )
    rate, norm = f"{section}.learning_rate", f"{section}.max_grad_norm"
    return f"Lower {rate}, set {norm} to 1 or less, or take model.dtype=float32"


def _last_good(folder: Path) -> str:
    checkpoint = max(folder.glob("checkpoint-*"), key=step_of, default=None)
    if checkpoint is None:
        return "No checkpoint was written before"
    return f"The last good checkpoint is {checkpoint}"


def watch_preferences(beta: float) -> Any:
    """A callback that prints what is `unhealthy`, each warning once, while there is time to stop."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            for warning in unhealthy(_steps(state.log_history), beta):
                if warning not in self.warnings:
                    self.warnings.append(warning)
                    print(f"Warning: {warning}")

    return Watch()


def preference_warnings(history: list[dict[str, Any]], beta: float) -> list[str]:
    """Whatever was `unhealthy` at some point of a run, each warning once."""
    logs = _steps(history)
    warnings: list[str] = []
    for end in range(WINDOW, len(logs) + 1):
        for warning in unhealthy(logs[:end], beta):
            if warning not in warnings:
                warnings.append(warning)
    return warnings


def _steps(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without evaluations, and the closing entry, which has the rewards of the last steps and no loss."""
    return [entry for entry in history if entry.keys() >= {"loss", "rewards/chosen"}]


def unhealthy(logs: list[dict[str, Any]], beta: float) -> list[str]:
    """What is wrong in the last `WINDOW` logs of a run, each with a setting that helps.

    `rewards/chosen` is beta times the log-probability that chosen has gained over the reference on the very
    same rows, so it shows falling `logps/chosen` without the noise of which rows were in the batch.
    """
    if len(logs) < WINDOW:
        return []

    def mean(name: str, entries: list[dict[str, Any]]) -> float:
        return sum(float(entry[name]) for entry in entries) / WINDOW

    first, last = logs[:WINDOW], logs[-WINDOW:]
    warnings = []
    if mean("rewards/chosen", last) < -FALL * beta:
        warnings.append(
            "logps/chosen falls: chosen answers became less likely than under the reference. "
            "Lower dpo.learning_rate, raise the weight of the `sft` loss (dpo.loss_weights) or dpo.beta"
        )
    if mean("loss", last) > 1.1 * mean("loss", first):
        warnings.append("the loss rises: lower dpo.learning_rate")
    if len(logs) >= 4 * WINDOW and mean("rewards/accuracies", last) < 0.5:
        warnings.append(
            "rewards/accuracies stay below one half: the pairs are not learnt. "
            "Raise dpo.learning_rate or look at the pairs"
        )
    return warnings
