"""What looks on while a trainer trains: the loss trace, the time left, the run's health, its checkpoints."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError
from tunebook.runs.files import checksums, read_json, write_json
from tunebook.runs.machine import rank

CHECKSUMS = "checksums.json"
"""Written into a checkpoint when it is whole."""


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
                os.utime(
                    folder, (state.global_step, state.global_step)
                )  # the trainer deletes the oldest by this time
            everyone.wait_for_everyone()  # one that fails in the next step ends all

    return WholeCheckpoints()


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
                raise UserError(
                    f"stopped at step {state.global_step}: {broken or odd}. {_remedy(odd, section)}. {_kept(Path(args.output_dir))}"
                )

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


WINDOW = 5
"""Logs that a judgement of the run's health is averaged over: one batch says little."""


FALL = 2.0
"""Nats that chosen may lose: then it is exp(2), seven times, less likely than it was."""


def watch_preferences(beta: float) -> Any:
    """A callback that says once, while there is time to stop, what goes wrong in a run and how to mend it.

    `rewards/chosen` is beta times the log-probability that chosen has gained over the reference on the very same rows, so it
    shows falling `logps/chosen` without the noise of which rows were in the batch.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.warnings: list[str] = []

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = [
                e for e in state.log_history if e.keys() >= {"loss", "rewards/chosen"}
            ]  # not evaluations, not the closing entry
            for warning in unhealthy(logs, beta):
                if warning not in self.warnings:
                    self.warnings.append(warning)
                    print(f"Warning: {warning}")

    return Watch()


def unhealthy(logs: list[dict[str, Any]], beta: float) -> list[str]:
    """What the last `WINDOW` logs of a run show to be wrong, each with its mend; nothing before there are so many."""
    if len(logs) < WINDOW:
        return []
    first, last = (
        {k: sum(float(e[k]) for e in part) / WINDOW for k in ("loss", "rewards/chosen", "rewards/accuracies")}
        for part in (logs[:WINDOW], logs[-WINDOW:])
    )
    found = {
        "logps/chosen falls: chosen answers became less likely than under the reference. "
        "Lower dpo.learning_rate, raise the weight of the `sft` loss (dpo.loss_weights) or dpo.beta": last[
            "rewards/chosen"
        ]
        < -FALL * beta,
        "the loss rises: lower dpo.learning_rate": last["loss"] > 1.1 * first["loss"],
        "rewards/accuracies stay below one half: the pairs are not learnt. Raise dpo.learning_rate or look at the pairs": (
            len(logs) >= 4 * WINDOW and last["rewards/accuracies"] < 0.5
        ),
    }
    return [warning for warning, is_so in found.items() if is_so]
