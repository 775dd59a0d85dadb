"""The recipes for a GPU, each a few steps through every stage, on a GPU: `uv run pytest -m gpu`.

Models and MM_Math come from the hub, or from the folders (or other hub ids) in `$TUNEBOOK_GPU_QWEN3`,
`$TUNEBOOK_GPU_GEMMA3N` and `$TUNEBOOK_GPU_MM_MATH` (`sample`: the project's own figures); text is the
project's own sample. The table at the end is worth sending back.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time

import pytest

from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import log_history, read_json

QWEN3 = {
    "model.base": os.environ.get("TUNEBOOK_GPU_QWEN3"),
    "data.sources": "[{format: alpaca, path: resources/sample/alpaca.jsonl, val: 0.1, test: 0},"
    " {format: gsm8k, path: resources/sample/questions.jsonl, split: test}]",
    "pairs.dataset": "resources/sample/preferences.jsonl",
}
GEMMA3N = {
    "model.base": os.environ.get("TUNEBOOK_GPU_GEMMA3N"),
    "data.sources.0.path": os.environ.get("TUNEBOOK_GPU_MM_MATH"),
    "pairs.prompts": 16,
    "pairs.samples": 2,
    "pairs.max_new_tokens": 512,
    "evaluate.ablation": 4,
}
SHORT = {
    "sft.max_steps": 3,
    "sft.logging_steps": 1,
    "sft.eval_strategy": "no",
    "sft.gradient_accumulation_steps": 2,
    "dpo.max_steps": 3,
    "dpo.logging_steps": 1,
    "dpo.eval_strategy": "no",
    "dpo.gradient_accumulation_steps": 2,
    "evaluate.limit": 8,
    "evaluate.max_new_tokens": 256,
    "export.items": 8,
}
STAGES = {
    "prepare": "data",
    "sft": "sft",
    "pairs": "pairs",
    "dpo": "dpo",
    "evaluate": "eval/dpo",
    "export": "export/merged",
}


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "keys"), [("qwen3-4b-instruct", QWEN3), ("gemma3n-mm-math", GEMMA3N)])
def test_recipe_on_a_gpu(name, keys, record_property):
    run = load_recipe(name).run_dir
    options = []
    for key, value in (SHORT | keys).items():
        if value is not None:
            options += ["--set", f"{key}={value}"]
    for command, folder in STAGES.items():
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "tunebook", command, "--recipe", name, *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        record = read_json(run / folder / "stage.json")
        losses = [float(entry["loss"]) for entry in log_history(run / folder) if "loss" in entry]
        memory = record.get("peak_memory_gb", {}).get("gpu", "")
        trace = " ".join(f"{loss:.4f}" for loss in losses) if record else "failed"
        if command == "sft" and record:
            # How near the end token's row is to the unused ones, and how many answers end after three steps.
            trace += f"; {record['audit']['end_token']}, answers {record['answers']}"
        if command == "export" and record:
            trace = f"Δ log p {record['parity'].get('mean_logp_difference')}, verified {record['verified']}"
        seconds = f"{time.monotonic() - started:.0f}"
        record_property("gpu", f"| {name} | {command} | {seconds} | {memory} | {trace} |")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        if command in ("sft", "dpo"):
            assert (
                len(losses) == 3
                and all(map(math.isfinite, losses))
                and record["hardware"]["gpus"]
                and memory > 0
            )
    assert abs(read_json(run / "dpo" / "stage.json")["audit"]["loss"] - math.log(2)) < 0.01


def test_the_gpu_tests_are_there_and_skipped_without_a_gpu():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-n",
        "0",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "200",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 0 and "SKIPPED [2]" in done.stdout and "2 skipped, 1 deselected" in done.stdout
    ), done.stdout + done.stderr
    assert "needs a CUDA GPU" in done.stdout
