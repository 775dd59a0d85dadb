"""Ctrl-C, SIGTERM and SIGUSR1 during a training, of its command and of `tunebook run`.

A checkpoint of the step under way is there afterwards, and the line that is printed goes on from it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import faults
import pytest
import tiny_text
import whole_recipe
import yaml

from tunebook.recipe.files import ROOT

STEPS = 400
"""Some twenty seconds, which no test waits for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, embedded, fork_server) -> Path:
    """A folder with a recipe on a tiny model."""
    folder = tmp_path_factory.mktemp("signals")
    made = "qwen3", str(folder / "model"), str(embedded), "15"
    assert command(fork_server, folder, "python", tiny_text.__file__, *made).wait() == 0
    content = whole_recipe.content("smollm2-math") | {"name": "tiny", "stages": ["sft"]}
    content["model"] |= {
        "base": str(folder / "model"),
        "dtype": "float32",
        "chat_template": "prompt/chatml.jinja",
        "eos_token": "<|im_end|>",
    }
    content["data"]["sources"] = [{"format": "geometry", "train": 40, "val": 4, "test": 4}]
    content["data"]["for_pairs"] = 0
    trained = {
        "per_device_train_batch_size": 4,
        "eval_strategy": "no",
        "logging_steps": 1,
        "max_steps": STEPS,
    }
    content["sft"] |= trained | {"save_steps": 1000}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return folder


def command(server: str, folder: Path, *argv: str) -> faults.Command:
    env = {"TUNEBOOK_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    jupyter = folder / "jupyter"
    env |= {"JUPYTER_PATH": str(jupyter)} if jupyter.exists() else faults.kernelspec(jupyter, server)
    log = folder / f"{time.monotonic_ns()}.log"
    return faults.Command(server, *argv, log=log, env=env, cwd=ROOT)


@pytest.mark.parametrize(
    ("first", "number", "code"),
    [
        ("sft", signal.SIGTERM, 143),
        ("sft", signal.SIGUSR1, 143),
        ("run", signal.SIGINT, 130),
        ("run", signal.SIGTERM, 143),
    ],
    ids=["sft SIGTERM", "sft SIGUSR1", "run Ctrl-C", "run SIGTERM"],
)
def test_a_signal_leaves_a_checkpoint_and_the_line_to_go_on(fork_server, folder, first, number, code):
    name = f"{first}-{code}-{int(number)}"
    partial = folder / "runs" / name / ".sft.partial"
    metrics = partial / "metrics.jsonl"
    options = ("--recipe", str(folder / "tiny.yaml"), "--run", name)
    until = ("--until", "sft") if first == "run" else ()
    training = command(fork_server, folder, first, *until, *options)
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        assert training.poll(0.01) is None, training.text
    os.kill(training.pid, number)
    assert training.wait(60) == code, training.text

    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"loss"' in line]
    saved = [path.name for path in (partial / "checkpoints").glob("checkpoint-*")]
    assert saved == [f"checkpoint-{max(steps)}"] and max(steps) < STEPS
    assert "Traceback" not in training.text
    line = re.search(r"tunebook: interrupted; .* Go on with: uv run tunebook (.*)", training.text)
    assert line, training.text
    # Two steps more are enough to see that it goes on.
    again = command(fork_server, folder, *shlex.split(line[1]))
    while again.poll(0.01) is None and metrics.read_text().count("\n") <= len(steps) + 2:
        pass
    os.kill(again.pid, signal.SIGTERM)
    assert again.wait(60) == 143, again.text
    newest = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"loss"' in line]
    assert newest[: len(steps)] == steps and max(newest) > max(steps)
    notebook = folder / "runs" / name / "notebooks" / "02_sft.ipynb"
    said = notebook.read_text() if first == "run" else again.text
    assert f"Going on from {saved[0]}" in said


def test_a_second_ctrl_c_ends_a_run_at_once(fork_server, folder):
    name = "twice"
    metrics = folder / "runs" / name / ".sft.partial" / "metrics.jsonl"
    # One step of 3000 rows.
    slow = ("--set", "sft.gradient_accumulation_steps=5000", "--set", "data.sources.0.train=3000")
    options = ("--recipe", str(folder / "tiny.yaml"), "--run", name, *slow)
    training = command(fork_server, folder, "run", "--until", "sft", *options)
    while not metrics.exists():  # it is written as the training begins
        assert training.poll(0.01) is None, training.text
    time.sleep(0.5)
    os.kill(training.pid, signal.SIGINT)
    assert training.poll(7) is None  # its step takes longer, and longer than nbclient would wait
    os.kill(training.pid, signal.SIGINT)
    assert training.wait(20) == 130, training.text
    assert "Traceback" not in training.text and "Go on with: uv run tunebook run" in training.text
