"""Every stage on a GPU, a few steps each: `uv run pytest -m gpu`. About ten minutes without the downloads.

First the embedded model, then the figures with a tiny Gemma 3n: neither fetches anything. Then the two
recipes for GPUs, whose models and MM_Math come from the hub, or from the folders (or other hub ids) in
`$TUNEBOOK_GPU_QWEN3`, `$TUNEBOOK_GPU_GEMMA3N` and `$TUNEBOOK_GPU_MM_MATH` (`sample`: the project's own).

    uv run pytest -m gpu -k "smollm2 or sample"     what needs no download

Where vLLM is installed (docs/engines.md) it answers too.

The table at the end, `runs/gpu-test.md`, is worth sending back. None of this has been run on a GPU yet.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu_table import LOG, write_table

from tunebook.generation import vllm
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import GenerateConfig
from tunebook.runs.files import log_history, read_json

# The project's default, as it would be used on a card.
SMOLLM2 = {
    "model.attn_implementation": "null",
    "data.sources.0.train": 300,
    "sft.max_steps": 60,
    "sft.save_steps": 10,
    "sft.packing": True,  # Unsloth packs on a GPU alone
    "sft.eval_strategy": "steps",
    "sft.eval_steps": 30,
    "export.to": "[adapter, merged, gguf]",
}
SAMPLE = {"data.sources.0.rows": 80, "pairs.prompts": 16, "pairs.samples": 2, "evaluate.ablation": 4}
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
RECIPES = [
    ("smollm2-math", SMOLLM2),
    ("mm-math-sample", SAMPLE),
    ("qwen3-4b-instruct", QWEN3),
    ("gemma3n-mm-math", GEMMA3N),
]


def start(command: str, name: str, keys: dict) -> subprocess.Popen[str]:
    """`tunebook COMMAND` with the keys of `SHORT` and those given."""
    options = []
    for key, value in (SHORT | keys).items():
        if value is not None:
            options += ["--set", f"{key}={value}"]
    return subprocess.Popen(
        [sys.executable, "-m", "tunebook", command, "--recipe", name, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def follow(process: subprocess.Popen[str], capsys) -> tuple[int, str]:
    """Show what a command prints as it comes, and keep it in `LOG`; returns its exit code and output."""
    output = ""
    LOG.parent.mkdir(exist_ok=True)
    with capsys.disabled(), LOG.open("a", encoding="utf-8") as log:
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
            output += line
    return process.wait(), output


def found(run: Path, command: str, record: dict) -> str:
    """The losses of a training, with what else a stage is here to show."""
    entries = log_history(run / STAGES[command])
    losses = [f"{float(entry['loss']):.4f}" for entry in entries if "loss" in entry]
    parts = [" ".join(losses[:3] + losses[-1:])] if losses else []
    if command == "sft":
        # How near the end token's row is to the unused ones, and how many answers end.
        parts += [str(record["audit"]["end_token"]), f"answers {record['answers']}"]
    if command == "export":
        parts.append(f"Δ log p {record['parity'].get('mean_logp_difference')}, verified {record['verified']}")
    return "; ".join(parts)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "keys"), RECIPES, ids=[name for name, _ in RECIPES])
def test_recipe_on_a_gpu(name, keys, record_property, capsys):
    run = load_recipe(name).run_dir
    for command, folder in STAGES.items():
        started = time.monotonic()
        process = start(command, name, keys)
        if command == "sft" and name == "smollm2-math":
            interrupted(process, run, capsys)
            process = start(command, name, keys)
        code, output = follow(process, capsys)

        record = read_json(run / folder / "stage.json")
        memory = record.get("peak_memory_gb", {}).get("gpu", "")
        metrics = record.get("metrics", {})
        speed = ""
        if metrics.get("tokens") and metrics["resumed_at_step"] is None:
            speed = f"{metrics['tokens'] / metrics['runtime_s']:.0f}"
        seen = found(run, command, record) if record else "failed"
        seconds = f"{time.monotonic() - started:.0f}"
        record_property("gpu", f"| {name} | {command} | {seconds} | {memory} | {speed} | {seen} |")

        assert code == 0, output[-3000:]
        if command in ("sft", "dpo"):
            losses = [float(entry["loss"]) for entry in log_history(run / folder) if "loss" in entry]
            assert len(losses) == metrics["steps"] and all(map(math.isfinite, losses))
            assert record["hardware"]["gpus"] and memory > 0 and metrics["tokens"]
        if command == "sft" and name == "smollm2-math":
            assert metrics["resumed_at_step"] >= 10 and "Going on from checkpoint-" in output
            # Sixty steps of a model that ends its answers as it comes.
            assert record["answers"]["ended"] >= record["answers"]["asked"] / 2
    assert abs(read_json(run / "dpo" / "stage.json")["audit"]["loss"] - math.log(2)) < 0.01


@pytest.mark.gpu
def test_vllm_answers_with_the_models_of_the_run(record_property, capsys):
    """After the test of its recipe, and only where vLLM is: beside this Python or in `TUNEBOOK_VLLM`."""
    run = load_recipe("smollm2-math").run_dir
    if vllm.find(GenerateConfig()) is None or not (run / "dpo" / "adapter").exists():
        pytest.skip("needs vLLM, and what the test of smollm2-math has trained")
    started = time.monotonic()
    keys = SMOLLM2 | {"generate.engine": "vllm", "evaluate.limit": 100}
    code, output = follow(start("evaluate", "smollm2-math", keys), capsys)
    engines = [read_json(run / "eval" / name / "stage.json").get("engine", {}) for name in ("base", "dpo")]
    seconds = f"{time.monotonic() - started:.0f}"
    record_property("gpu", f"| smollm2-math | evaluate by vLLM | {seconds} | | | {engines} |")
    assert code == 0, output[-3000:]
    assert all(engine["checked"] and engine["mean_logp_difference"] < 0.05 for engine in engines)


def interrupted(process: subprocess.Popen[str], run: Path, capsys) -> None:
    """Send SIGTERM once the first checkpoint is whole, as a cluster does: it ends with another one."""
    checkpoint = run / ".sft.partial" / "checkpoints" / "checkpoint-10" / "checksums.json"

    def terminate() -> None:
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    code, output = follow(process, capsys)
    assert code == 143, output[-3000:]


def test_the_table_names_card_driver_and_versions_with_the_card_patched_in(tmp_path, monkeypatch):
    import torch

    card = SimpleNamespace(name="NVIDIA L4", total_memory=24 * 2**30, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    write_table(tmp_path / "runs" / "gpu-test.md", ["| a | sft | 3 | 1.5 | 900 | 2.1 |"])
    lines = (tmp_path / "runs" / "gpu-test.md").read_text().splitlines()
    assert lines[0] == "NVIDIA L4, 24 GiB, capability 8.9"
    assert lines[1].startswith("driver ") and f"torch {torch.__version__}" in lines[1]
    assert lines[-1] == "| a | sft | 3 | 1.5 | 900 | 2.1 |" and lines[3].count("|") == lines[-1].count("|")


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
        done.returncode == 0 and "SKIPPED [5]" in done.stdout and "5 skipped, 2 deselected" in done.stdout
    ), done.stdout + done.stderr
    assert "needs a CUDA GPU" in done.stdout
