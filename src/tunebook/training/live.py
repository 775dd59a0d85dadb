"""The table of losses that grows in a notebook while training runs."""

from __future__ import annotations

from typing import Any

ROWS = 50
"""The most lines that the table gets from logs: of a long run only every so manieth is shown."""


def show_live(trainer: Any) -> None:
    """In a notebook, put a table that grows with every log in the place of transformers' own.

    That one adds a line at an evaluation alone, where there are any (transformers 5.17,
    `utils/notebook.py`, `on_log`): a long training looks as if nothing came.
    """
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    # Only there does it exist; importing it elsewhere would need IPython.
    if "NotebookProgressCallback" not in names:
        return
    from transformers.utils.notebook import NotebookProgressCallback

    class LiveTable(NotebookProgressCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs or self.training_tracker is None:
                return
            every = args.logging_steps if args.logging_steps >= 1 else args.logging_steps * state.max_steps
            step_of_rows = max(1, state.max_steps / max(1, every) / ROWS)
            number = state.global_step / max(1, every)
            if number % step_of_rows >= 1 and state.global_step < state.max_steps:
                return
            values = {self.first_column: state.global_step, "Training Loss": float(logs["loss"])}
            if self.first_column == "Epoch":
                values["Epoch"] = f"{state.epoch:.2f}"
            # The table has this column from the start, and wants it in every line.
            if args.eval_strategy != "no":
                values["Validation Loss"] = ""
            self.training_tracker.write_line(values)

    # Ours in its place, so that the bar is drawn once.
    trainer.pop_callback(NotebookProgressCallback)
    trainer.add_callback(LiveTable())
