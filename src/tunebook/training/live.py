"""What grows in a notebook while training runs: a figure of the losses, and a table below it."""

from __future__ import annotations

import io
import time
from typing import Any

from tunebook.runs import curves
from tunebook.runs.files import tokens_seen

ROWS = 30
"""The most lines that the table gets from logs: of a long run only every so manieth is shown."""

EVERY_S = 3.0
"""How often the figure is drawn at most."""

SHARE = 0.05
"""Of the time, what drawing may take: a figure that takes long is drawn less often."""


class LiveFigure:
    """A figure in a notebook that is drawn again as the training goes on."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self.empty = HTML("")
        self.handle = display(self.empty, display_id=True)
        self.due = 0.0

    def update(self, history: list[dict[str, Any]]) -> None:
        """Draw what has been logged, unless it was drawn a moment ago."""
        from IPython.display import Image

        begun = time.monotonic()
        if begun < self.due:
            return
        png = io.BytesIO()
        curves.training(history).savefig(png, format="png", dpi=80)
        self.handle.update(Image(png.getvalue()))
        ended = time.monotonic()
        self.due = ended + max(EVERY_S, (ended - begun) / SHARE)

    def remove(self) -> None:
        """Leave no picture behind: the cell below the training draws the whole curve."""
        self.handle.update(self.empty)


def show_live(trainer: Any) -> None:
    """In a notebook, put a figure and a table that grow with every log in the place of transformers' table.

    That one adds a line at an evaluation alone, where there are any (transformers 5.17,
    `utils/notebook.py`, `on_log`): a long training looks as if nothing came.
    """
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    # Only there does it exist; importing it elsewhere would need IPython.
    if "NotebookProgressCallback" not in names:
        return
    from transformers.utils.notebook import NotebookProgressCallback

    class Live(NotebookProgressCallback):  # type: ignore[misc]
        figure: LiveFigure | None = None
        tokens, since = 0.0, 0.0  # at the newest log, and when that was

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_train_begin(args, state, control, **kwargs)
            if self.figure:  # training begins anew, with smaller batches
                self.figure.remove()
            # Above the table, which grows downwards.
            self.figure = LiveFigure()
            self.tokens, self.since = 0.0, 0.0

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_train_end(args, state, control, **kwargs)
            if self.figure:
                self.figure.remove()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs or self.training_tracker is None or self.figure is None:
                return
            self.figure.update(state.log_history)
            speed = self.tokens_a_second(tokens_seen(logs) or 0.0)
            every = args.logging_steps if args.logging_steps >= 1 else args.logging_steps * state.max_steps
            # Of a long training only some logs have a line; the last one always has.
            step_of_rows = max(1, state.max_steps / max(1, every) / ROWS)
            number = state.global_step / max(1, every)
            if number % step_of_rows >= 1 and state.global_step < state.max_steps:
                return
            loss, rate = float(logs["loss"]), f"{float(logs.get('learning_rate', 0)):.2e}"
            self.write(state, {"Training Loss": loss, "Learning Rate": rate, "Tokens/s": speed})

        def write(self, state: Any, values: dict[str, Any]) -> None:
            """Write a line of the table, or more of the one that is there of this step."""
            columns, *lines = self.training_tracker.inner_table
            values[columns[0]] = state.global_step if columns[0] == "Step" else f"{state.epoch:.2f}"
            if not lines or lines[-1][0] != values[columns[0]]:
                values = dict.fromkeys(columns, "") | values
            self.training_tracker.write_line(values)

        def tokens_a_second(self, tokens: float) -> str:
            """Since the log before; empty at the first one."""
            before, since = self.tokens, self.since
            self.tokens, self.since = tokens, time.monotonic()
            return f"{(tokens - before) / (self.since - since):,.0f}" if since else ""

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
        ) -> None:
            if self.training_tracker is None:
                super().on_evaluate(args, state, control, metrics=metrics, **kwargs)
                return
            # Its loss alone; `metrics.jsonl` has the rest. transformers' own line is of epoch 0 at epoch 0.6.
            self.write(state, {"Validation Loss": (metrics or {}).get("eval_loss", "")})
            self.training_tracker.remove_child()
            self.prediction_bar = None
            self._force_next_update = True

    # Ours in its place, so that the bar is drawn once.
    trainer.pop_callback(NotebookProgressCallback)
    trainer.add_callback(Live())
