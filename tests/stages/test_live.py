"""In a notebook a figure and a table grow while training runs; transformers' own table is replaced."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tunebook.training import live


@pytest.fixture
def displays(monkeypatch):
    displays = []

    def display(content, display_id=False):
        """Stands for IPython's, which shows nothing outside of a notebook."""
        shown = SimpleNamespace(contents=[content])
        shown.update = shown.contents.append
        displays.append(shown)
        return shown

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(live, "EVERY_S", 0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    return displays


def live_callback():
    """The callback that takes the place of transformers'."""
    from transformers.utils import notebook

    callbacks = [notebook.NotebookProgressCallback()]
    trainer = SimpleNamespace(
        callback_handler=SimpleNamespace(callbacks=callbacks),
        pop_callback=lambda kind: callbacks.clear(),
        add_callback=callbacks.append,
    )
    live.show_live(trainer)
    return callbacks[0]


def test_figure_and_table_grow_with_every_log_and_no_picture_stays(displays):
    callback = live_callback()
    args = SimpleNamespace(eval_strategy="steps", logging_steps=1)
    state = SimpleNamespace(log_history=[], max_steps=4, global_step=0, epoch=0.5, num_train_epochs=1)
    callback.on_train_begin(args, state, None)
    for step in (1, 2, 3, 4):
        state.global_step = step
        logs = {"loss": 1 / step, "learning_rate": 1e-4, "num_tokens": 100.0 * step}
        state.log_history.append({"step": step, **logs})
        callback.on_log(args, state, None, logs=logs)
        callback.on_step_end(args, state, None)
    metrics = {"eval_loss": 0.5, "eval_entropy": 1.0, "eval_runtime": 1.0}
    callback.on_evaluate(args, state, None, metrics=metrics)
    table = callback.training_tracker.inner_table
    callback.on_train_end(args, state, None)

    figure, bar = displays
    pictures = [content.data for content in figure.contents[1:-1]]
    assert len(pictures) == 4 and len(set(pictures)) == 4  # each has a point more
    assert figure.contents[-1].data == "" and len(bar.contents) > 4
    columns, *rows = table
    assert columns == ["Step", "Training Loss", "Validation Loss", "Learning Rate", "Tokens/s"]
    assert [row[:2] for row in rows] == [[step, 1 / step] for step in (1, 2, 3, 4)]
    assert rows[-1][2] == 0.5 and rows[0][3] == "1.00e-04" and rows[0][4] == ""
    assert float(rows[-1][4].replace(",", "")) > 0


def test_an_evaluation_of_each_epoch_has_no_line_of_its_own_beside_the_log(displays):
    callback = live_callback()
    args = SimpleNamespace(eval_strategy="epoch", logging_steps=1)
    state = SimpleNamespace(log_history=[], max_steps=2, global_step=0, epoch=0.0, num_train_epochs=1)
    callback.on_train_begin(args, state, None)
    for state.global_step, state.epoch in ((1, 0.3), (2, 0.6)):
        callback.on_log(args, state, None, logs={"loss": 1.25, "learning_rate": 1e-4})
    callback.on_evaluate(args, state, None, metrics={"eval_loss": 1.26})
    columns, *rows = callback.training_tracker.inner_table
    assert columns[0] == "Epoch"
    assert [row[:3] for row in rows] == [["0.30", 1.25, ""], ["0.60", 1.25, 1.26]]
    # An evaluation where nothing was logged
    state.epoch = 0.9
    callback.on_evaluate(args, state, None, metrics={"eval_loss": 1.0})
    assert callback.training_tracker.inner_table[-1] == ["0.90", "", 1.0, "", ""]
