"""`tunebook run` prints how far a stage is, out of the files that the notebook's process writes."""

from __future__ import annotations

import json
import time

import pytest

from tunebook import following


def log(folder, *entries):
    folder.mkdir(exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        for entry in entries:
            file.write(json.dumps(entry) + "\n")


def test_a_training_says_step_loss_and_time_left(tmp_path):
    folder = tmp_path / ".sft.partial"
    progress = following.Progress("sft")
    assert progress.line([folder], 0) == ""
    log(folder, {"step": 10, "loss": "1.5", "learning_rate": "0.0002"})
    (folder / "progress.json").write_text('{"steps": 100}')
    assert progress.line([folder], 100) == "sft       step 10 of 100, loss 1.500, learning rate 2.0e-04"
    assert progress.line([folder], 101) == ""  # nothing new
    log(folder, {"step": 20, "eval_loss": 1.0}, {"step": 20, "loss": 1.25})
    assert (
        progress.line([folder], 130) == "sft       step 20 of 100, loss 1.250, 3.0 s a step, about 4 min left"
    )
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')  # as far as it has been written
    assert progress.line([folder], 133) == ""
    log(folder, {"step": 22, "loss": 1.0})  # ends the line that was cut short
    log(folder, {"step": 30, "loss": 1.0})
    assert progress.line([folder], 160).startswith("sft       step 30 of 100")


def test_a_training_says_its_tokens_a_second(tmp_path):
    folder = tmp_path / ".sft.partial"
    progress = following.Progress("sft")
    log(folder, {"step": 10, "loss": 1.5, "num_tokens": 1000.0})
    (folder / "progress.json").write_text('{"steps": 100}')
    progress.line([folder], 100)
    log(folder, {"step": 20, "loss": 1.25, "num_tokens": 61_000.0})
    assert "3.0 s a step, 2,000 tokens a second" in progress.line([folder], 130)


def test_answers_say_how_fast_they_come(tmp_path):
    folder = tmp_path / ".base.partial"
    folder.mkdir()
    progress = following.Progress("evaluate")
    (folder / "predictions.jsonl").write_text("{}\n" * 40)
    assert progress.line([folder], 0) == ""  # of an earlier run, perhaps
    (folder / "predictions.jsonl").write_text("{}\n" * 100)
    assert progress.line([folder], 30) == "evaluate  base: 100 answers, 2.0 a second"


def test_answers_of_a_known_number_say_what_is_left(tmp_path):
    folder = tmp_path / ".base.partial"
    folder.mkdir()
    progress = following.Progress("evaluate")
    answers, known = folder / "predictions.jsonl", folder / "progress.json"
    known.write_text('{"predictions.jsonl": 220}')
    answers.write_text("{}\n" * 40)
    assert progress.line([folder], 0) == ""
    answers.write_text("{}\n" * 100)
    assert progress.line([folder], 30) == "evaluate  base: 100 of 220 answers, 2.0 a second, about 1 min left"
    assert progress.line([folder], 50) == ""  # nothing has come since
    answers.write_text("{}\n" * 220)
    assert progress.line([folder], 90) == "evaluate  base: 220 of 220 answers, 2.0 a second"
    known.write_text('{"retention.jsonl": 355}')
    assert progress.line([folder], 120) == ""  # the total of other questions, which are not there yet
    (folder / "retention.jsonl").write_text("{}\n" * 5)
    progress.line([folder], 130)
    (folder / "retention.jsonl").write_text("{}\n" * 105)
    assert (
        progress.line([folder], 140) == "evaluate  base: 105 of 355 answers, 10.0 a second, about 25 s left"
    )
    known.unlink()
    assert progress.line([folder], 150) == ""


def test_a_file_of_answers_that_is_still_empty_says_nothing(tmp_path):
    folder = tmp_path / ".base.partial"
    folder.mkdir()
    progress = following.Progress("evaluate")
    (folder / "predictions.jsonl").touch()
    assert progress.line([folder], 0) == ""
    (folder / "predictions.jsonl").write_text("{}\n" * 60)
    assert progress.line([folder], 30) == "evaluate  base: 60 answers, 2.0 a second"


def test_a_file_that_goes_while_it_is_looked_for_says_nothing(tmp_path):
    # A folder in the file's place cannot be opened either; a stage renames its folder at its end.
    progress = following.Progress("sft")
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "samples.jsonl").mkdir()
    (tmp_path / "progress.json").write_text('{"steps": 100}')
    assert progress.line([tmp_path], 0) == ""


def test_the_number_of_answers_to_come_is_known_while_they_come(tmp_path, monkeypatch):
    from contextlib import nullcontext

    from tunebook.generation import generate
    from tunebook.generation.answers import Answer, Sampling

    path = tmp_path / "predictions.jsonl"
    seen = []

    def asked(source, prompts, *_, **__):
        seen.append((path.with_name("progress.json")).read_text())
        yield {i: Answer("yes", 1, False) for i in range(len(prompts))}

    monkeypatch.setattr(generate, "generate", asked)
    prompts = [[{"role": "user", "content": "?"}]] * 3
    records = generate.answer_file(
        path, nullcontext(None), prompts, Sampling(1), lambda i, answer: {"text": answer.text}, "x"
    )
    assert len(records) == 3 and json.loads(seen[0]) == {path.name: 3}
    assert not path.with_name("progress.json").exists()


@pytest.fixture
def after_a_step(tmp_path, monkeypatch):
    """Makes the folder of a training of so many steps that has done one; it is looked at all the time."""
    monkeypatch.setattr(following, "LOOK_S", 0.01)

    def make(steps: int):
        folder = tmp_path / ".training.partial"
        log(folder, {"step": 1, "loss": 2.0})
        (folder / "progress.json").write_text(json.dumps({"steps": steps}))
        return folder

    return make


def test_lines_come_while_the_block_runs(after_a_step):
    folder = after_a_step(3)
    lines = []
    with following.following("sft", [folder], lines.append):
        for _ in range(500):
            if lines:
                break
            time.sleep(0.01)
    assert lines == ["sft       step 1 of 3, loss 2.000"]


def test_after_some_timed_steps_the_forecast_is_said_once(after_a_step):
    folder = after_a_step(30)
    lines, step_seconds = [], []

    def forecast(step_s):
        step_seconds.append(step_s)
        return "Forecast"

    with following.following("sft", [folder], lines.append, forecast):
        for step in range(2, 12):
            time.sleep(0.03)
            log(folder, {"step": step, "loss": 1.0})
        for _ in range(500):
            if "Forecast" in lines:
                break
            time.sleep(0.01)
        time.sleep(0.05)
    assert lines.count("Forecast") == len(step_seconds) == 1 and step_seconds[0] > 0


def test_no_forecast_is_made_of_a_training_whose_steps_are_all_done(after_a_step):
    folder = after_a_step(6)
    lines = []
    with following.following("dpo", [folder], lines.append, lambda step_s: "Forecast"):
        time.sleep(0.1)
        log(folder, {"step": 6, "loss": 1.0})
        time.sleep(0.2)
    assert lines == ["dpo       step 1 of 6, loss 2.000"]


def test_a_training_says_at_which_step_it_begins_or_goes_on(tmp_path):
    folder = tmp_path / ".sft.partial"
    folder.mkdir()
    (folder / "progress.json").write_text('{"steps": 6, "done": 0}')
    assert following.Progress("sft").line([folder], 0) == "sft       begins at step 1 of 6"
    log(folder, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 2.0})
    (folder / "progress.json").write_text('{"steps": 6, "done": 2}')
    progress = following.Progress("sft")
    assert progress.line([folder], 0) == "sft       goes on at step 3 of 6"
    log(folder, {"step": 3, "loss": 2.0})
    assert progress.line([folder], 1) == "sft       step 3 of 6, loss 2.000"


def test_a_long_silence_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(following, "LOOK_S", 0.01)
    monkeypatch.setattr(following, "QUIET_S", 0.05)
    lines = []
    with following.following("sft", [tmp_path], lines.append, doing=lambda: ' in "The model"'):
        time.sleep(0.5)
    # After 0.05, 0.1, 0.2 and 0.4 seconds: a long silence is not a line every moment.
    assert 2 <= len(lines) <= 4 and set(lines) == {'sft       still at work in "The model", 0 s'}
